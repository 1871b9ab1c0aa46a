//! The program `charthold`. Everything is in the library, so that tests reach it.

/// For RocksDB's allocations, too, which come from many threads and are freed by others: glibc's arenas grow by that and
/// take a tenth of a commit's CPU time. It gives unused pages back from a thread of its own.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    charthold::cli::main()
}
