# shellcheck shell=bash
# What the scripts of this folder share: messages, consent, and installing what a fresh Debian or Ubuntu lacks.
# Sourced, never run. It knows nothing of tests or clusters.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034  # for those who source this
cache="$HOME/.cache/charthold"
# shellcheck disable=SC2034
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
consented=no
if [ "${CI:-}" = true ]; then consented=yes; fi

rust_line="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y && . \"\$HOME/.cargo/env\""

say() { printf '%s\n' "$*" >&2; }

die() {
    say "${0##*/}: $*"
    exit 1
}

# As root, as sudo, or with the line that a person can run.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo. As root, run: $*"
    fi
}

# "sudo " for a shown line that needs root.
sudo_word() { if [ "$(id -u)" != 0 ]; then printf 'sudo '; fi; }

# consent WHAT LINE: returns if LINE may be run here, else stops and shows it.
consent() {
    local answer
    if [ "$consented" = yes ]; then return; fi
    if [ -t 0 ]; then
        read -r -p "$1 Run '$2' now? [y/N] " answer
        case "$answer" in [yY]*) return ;; esac
    fi
    say "$1 Run this, or start again with --yes:"
    say "  $2"
    exit 1
}

has_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/llvm-*/lib/libclang.so*' >/dev/null ||
        compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' >/dev/null
}

# need_packages [tests]: RocksDB's bindings are made with libclang, its C++ is compiled by clang behind ccache
# (.cargo/config.toml), and rustc links with cc.
need_packages() {
    local missing=()
    command -v clang++ >/dev/null || missing+=(clang)
    has_libclang || missing+=(libclang-dev)
    command -v ccache >/dev/null || missing+=(ccache)
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    if [ "${1:-}" = tests ]; then
        python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        # Sites of a test with networks of their own.
        command -v ip >/dev/null || missing+=(iproute2)
        command -v iptables >/dev/null || missing+=(iptables)
    fi
    if [ ${#missing[@]} = 0 ]; then return; fi
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (names as in Debian). Install them and start again."

    consent "Missing: ${missing[*]}." \
        "$(sudo_word)apt-get update && $(sudo_word)apt-get install -y ${missing[*]}"
    as_root apt-get update -q >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
}

# need_rust [COMPONENT...]: cargo, new enough for this workspace, with the components.
need_rust() {
    local have want component
    if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    if ! command -v cargo >/dev/null; then
        # The line must work as it is shown.
        command -v curl >/dev/null || rust_line="$(sudo_word)apt-get install -y curl ca-certificates && $rust_line"
        say "Rust is missing. This line installs it; then start again:"
        say "  $rust_line"
        exit 1
    fi
    # From /: what stands in this workspace must not decide which toolchain answers.
    have=$(cd / && cargo --version | cut -d' ' -f2)
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    if [ "$(printf '%s\n%s\n' "$want" "${have%%-*}" | sort -V | head -n 1)" != "$want" ]; then
        say "Rust $have is too old, $want is needed. If rustup manages it: rustup update stable. Else this installs it:"
        say "  $rust_line"
        exit 1
    fi
    for component in "$@"; do
        cargo "$component" --version >/dev/null 2>&1 && continue
        consent "cargo $component is missing." "rustup component add rustfmt clippy"
        rustup component add rustfmt clippy >&2
    done
}

seconds_as_text() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }
