//! The program `charthold`. Everything is in the library, so that tests reach it.

fn main() -> std::process::ExitCode {
    charthold::cli::main()
}
