#!/usr/bin/env bash
# Everything that must hold before a change goes in, from a fresh Debian or Ubuntu on; or one long proof.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Cold, RocksDB alone is 20 minutes of C++ on two cores.
build_minutes_max=50
tests_minutes_max=40
deny_version=0.20.2
tools="$cache/tools"
venv="$cache/venv"
# In the repository: what was shown is part of what is said. Its lines are no change of what they are about.
results_name=tests/long-results.tsv
results="${CHARTHOLD_TEST_RESULTS:-$root/$results_name}"

usage() {
    cat <<USAGE
Usage: deploy/test.sh [--yes]                          format, lints, licenses, build, docs, tests
       deploy/test.sh --long list                      names of the long proofs
       deploy/test.sh --long NAME|all [--seed N] [--again]

A long proof that passed at this commit is not run again, unless by --again. Each run adds a line (time, commit,
name, seed, seconds, result) to $results.

--yes    install missing packages without asking (so does CI=true)
USAGE
}

# --- Steps: each is timed, a failed one is remembered, and the next still runs.

step_rows=()
failed=0

step() {
    local name=$1 started=$SECONDS result=ok
    shift
    say "==> $name"
    "$@" || result="FAILED"
    if [ "$result" != ok ]; then failed=$((failed + 1)); fi
    step_rows+=("$(printf '%-28s %8s  %s' "$name" "$(seconds_as_text $((SECONDS - started)))" "$result")")
    [ "$result" = ok ]
}

summary() {
    say ""
    printf '%s\n' "${step_rows[@]}" >&2
    if [ "$failed" = 0 ]; then
        say "test.sh: all steps done in $(seconds_as_text $SECONDS)"
    else
        say "test.sh: $failed of ${#step_rows[@]} steps FAILED, in $(seconds_as_text $SECONDS)"
        exit 1
    fi
}

# cargo-deny is built apart from this workspace, whose flags and target folder are not for it.
install_cargo_deny() {
    if "$tools/bin/cargo-deny" --version 2>/dev/null | grep -qF "$deny_version"; then return; fi
    (
        cd /
        unset RUSTFLAGS CARGO_BUILD_TARGET
        CARGO_TARGET_DIR="$tools/build" cargo install cargo-deny --version "$deny_version" --locked --root "$tools"
    ) || return
    rm -rf "$tools/build"
}

deny() {
    install_cargo_deny || return
    PATH="$tools/bin:$PATH" cargo deny --locked check --hide-inclusion-graph bans licenses sources
}

# A Python of the tests' own. The copied list of packages says that the installation went through.
python_for_tests() {
    local wanted="$root/deploy/test-requirements.txt"
    if [ -x "$venv/bin/python" ] && cmp -s "$wanted" "$venv/requirements.txt"; then return; fi
    rm -rf "$venv"
    python3 -m venv "$venv" || return
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$wanted" || return
    cp "$wanted" "$venv/requirements.txt"
}

# The binary stands beside the tests, which start it.
build() { timeout "${build_minutes_max}m" cargo build --locked --workspace --all-targets; }

doc_tests() { timeout "${tests_minutes_max}m" cargo test --locked --workspace --doc; }

# Warnings are failures: a link that leads nowhere, a tag that is none. RUSTDOCFLAGS builds no crate again. With private
# items, since most of these documents are for whoever changes the code.
docs() {
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" timeout "${tests_minutes_max}m" \
        cargo doc --locked --workspace --no-deps --document-private-items
}

# Also of what is compiled with the bugs on purpose, which nothing else here builds.
lints() {
    cargo clippy --locked --workspace --all-targets -- -D warnings &&
        cargo clippy --locked --workspace --all-targets --features charthold/planted-bugs -- -D warnings
}

# nextest gives every test its own process and limit (.config/nextest.toml); without it there is one limit for all.
tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        timeout "${tests_minutes_max}m" cargo nextest run --locked --workspace --no-tests fail
    else
        timeout "${tests_minutes_max}m" cargo test --locked --workspace --exclude charthold-tests --lib --bins &&
            timeout "${tests_minutes_max}m" cargo test --locked -p charthold-tests -- --test-threads 1
    fi
}

run_all() {
    need_rust fmt clippy
    need_packages tests
    cd "$root"
    export CHARTHOLD_TEST_PYTHON="$venv/bin/python"
    step "cargo fmt" cargo fmt --all --check || true
    step "cargo deny" deny || true
    step "python for tests" python_for_tests || true
    if step "build" build; then
        step "cargo clippy" lints || true
        step "cargo doc" docs || true
        # Before the tests, so that the tests' own count closes the run.
        step "doc tests" doc_tests || true
        step "tests" tests || true
    fi
    summary
}

# --- Long proofs: ignored tests of the binary `long`, one at a time.

long_test() { cargo test --locked --workspace --test long -- --ignored "$@"; }

long_names() { long_test --list --format terse 2>/dev/null | sed -n 's/: test$//p'; }

commit_name() {
    local commit
    commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo none)
    if [ -n "$(git -C "$root" status --porcelain -- . ":!$results_name" 2>/dev/null)" ]; then commit="$commit+changes"; fi
    printf '%s' "$commit"
}

# Uncommitted changes have no name, so nothing has passed with them.
has_passed() {
    [[ $1 != *+changes ]] && [ -f "$results" ] &&
        awk -F '\t' -v commit="$1" -v name="$2" \
            '$2 == commit && $3 == name && $6 == "passed" { found = 1 } END { exit !found }' "$results"
}

run_long_one() {
    local name=$1 seed=$2 again=$3 commit started=$SECONDS result=passed
    commit=$(commit_name)
    if [ "$again" = no ] && has_passed "$commit" "$name"; then
        say "$name: passed at $commit already"
        return
    fi
    CHARTHOLD_TEST_SEED=$seed long_test --exact "$name" --nocapture || result=FAILED
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$(date -u +%FT%TZ)" "$commit" "$name" "$seed" $((SECONDS - started)) "$result" \
        >>"$results"
    say "$name: $result, seed $seed (in $results)"
    [ "$result" = passed ]
}

run_long() {
    local wanted=$1 seed=$2 again=$3 names name
    need_rust
    need_packages tests
    cd "$root"
    build
    names=$(long_names)
    if [ "$wanted" = list ]; then
        printf '%s\n' "$names"
        return
    fi
    if [ "$wanted" != all ]; then
        grep -qxF "$wanted" <<<"$names" || die "no long proof is named '$wanted'. There are: ${names//$'\n'/ }"
        names=$wanted
    fi
    for name in $names; do
        run_long_one "$name" "$seed" "$again" || failed=$((failed + 1))
    done
    if [ "$failed" != 0 ]; then exit 1; fi
}

long='' seed=$((RANDOM * 32768 + RANDOM)) again=no
while [ $# -gt 0 ]; do
    case "$1" in
    --yes) consented=yes ;;
    --long) long=${2:-list} && shift $(($# > 1)) ;;
    --seed) seed=${2:?a number must follow --seed} && shift ;;
    --again) again=yes ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
    esac
    shift
done

if [ -n "$long" ]; then run_long "$long" "$seed" "$again"; else run_all; fi
