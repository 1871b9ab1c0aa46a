#!/usr/bin/env bash
# The program as it is meant to be run: compiled a second time with what a cluster under load has told the compiler about its
# branches. What that gives: ARCHITECTURE.md, "Where a commit's time goes". RocksDB's C++ is compiled as ever.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

platform=x86_64-unknown-linux-gnu
# Of each load.
train_seconds=20
ready_seconds_max=120

usage() {
    cat <<USAGE
Usage: deploy/release.sh [--yes] [--base-port PORT]

Builds the program twice (cold: about 50 minutes on two cores) and prints where it is. Between the builds a cluster of
three nodes runs on this machine for two minutes, in a folder of its own that is removed.

--yes             install missing packages without asking (so does CI=true)
--base-port PORT  of that cluster; it uses 30 ports from there (default: 17400)
USAGE
}

# The profile's format belongs to the compiler's LLVM: only a tool of the same major version merges it.
find_merger() {
    local major candidate
    major=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
    for candidate in "$(rustc --print sysroot)/lib/rustlib/$platform/bin/llvm-profdata" "llvm-profdata-$major" llvm-profdata; do
        if "$candidate" --version 2>/dev/null | grep -q "LLVM version $major\."; then
            merger=$candidate
            return
        fi
    done
    die "no llvm-profdata of LLVM $major: 'rustup component add llvm-tools' brings it, or Debian's package llvm-$major"
}

# build FOLDER FLAGS: into $target/FOLDER. With a platform named, the flags are for the program alone, not for what builds it.
build() {
    local folder=$1
    shift
    # Replaces the flags of .cargo/config.toml: its own are repeated here.
    CARGO_TARGET_DIR="$target/$folder" RUSTFLAGS="--cfg tokio_unstable $*" \
        cargo build --release --locked --target "$platform" --bin charthold >&2
    built="$target/$folder/$platform/release/charthold"
}

wait_until_ready() {
    local until=$((SECONDS + ready_seconds_max))
    # When the patients are in.
    until grep -q '^ready;' "$work.log"; do
        kill -0 "$cluster" 2>/dev/null || die "the cluster did not start: $(tail -n 5 "$work.log")"
        [ $SECONDS -lt $until ] || die "the cluster is not ready after $ready_seconds_max s: $(tail -n 5 "$work.log")"
        sleep 0.5
    done
}

# What clients do: patients' charts; many and few writers; readers; each call by itself; both together.
train() {
    "$built" dev --data "$work" --base-port "$base_port" --load "$root/tests/fixtures/patients" >"$work.log" 2>&1 &
    cluster=$!
    wait_until_ready
    local load
    for load in "--writers 256 --readers 0 --size 1024" "--writers 1 --readers 256" "--writers 64 --readers 64" \
        "--writers 64 --readers 0 --without-streams" "--writers 1 --readers 0"; do
        say "    $load"
        # shellcheck disable=SC2086  # words
        "$built" --profile "$work/client.toml" bench $load --seconds "$train_seconds" --warm-up 0 >/dev/null
    done
    # The profile is written when a process ends by itself.
    kill -INT "$cluster"
    wait "$cluster" || die "the cluster did not end well: $(tail -n 5 "$work.log")"
    cluster=""
}

clean_up() {
    if [ -n "$cluster" ]; then kill "$cluster" 2>/dev/null || true; fi
    rm -rf "$work" "$work.log" "$raw"
}

base_port=17400
while [ $# -gt 0 ]; do
    case "$1" in
    --yes) consented=yes ;;
    --base-port)
        shift
        base_port=${1:?--base-port needs a number}
        ;;
    -h | --help)
        usage
        exit
        ;;
    *)
        usage >&2
        die "unknown argument: $1"
        ;;
    esac
    shift
done
[ "$(uname -m)" = x86_64 ] || die "only for x86-64: elsewhere use cargo build --release --locked --bin charthold"

need_packages
need_rust
cd "$root"
find_merger
mkdir -p "$target/guided"
work=$(mktemp -d)
raw="$target/guided/raw"
cluster=""
trap clean_up EXIT
rm -rf "$raw"

say "==> build that counts"
build guided/counting "-C profile-generate=$raw"
say "==> load"
train
"$merger" merge --output "$target/guided/charthold.profdata" "$raw"
say "==> build that knows"
build guided "-C profile-use=$target/guided/charthold.profdata"
printf '%s\n' "$built"
