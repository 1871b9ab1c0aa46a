#!/usr/bin/env bash
# From a fresh Debian or Ubuntu to a running cluster of three sites on this machine, with patients in it.
set -euo pipefail
# shellcheck source=deploy/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

patients="tests/fixtures/patients"
# The first of them.
patient="af2285bc-0ced-4add-8a6a-08f41439656a"
sites=3
ready_minutes_max=20

usage() {
    cat <<USAGE
Usage: deploy/quickstart.sh [--yes] [--data DIR] [--base-port PORT]

--yes             install missing packages without asking (so does CI=true)
--data DIR        where the cluster keeps everything; the same folder again resumes (default: charthold-dev)
--base-port PORT  the first node's client port (default: 7400)
USAGE
}

# `charthold dev` holds this lock as long as it runs.
is_running() { [ -f "$data/dev.lock" ] && ! flock -n "$data/dev.lock" true; }

# In a session of its own, so that closing the terminal does not stop it. $! is dev's own process id.
start() {
    mkdir -p "$data"
    setsid nohup "$charthold" --output table dev --data "$data" --sites "$sites" --load "$patients" "$@" \
        </dev/null >"$data/dev.log" 2>&1 &
    echo $! >"$data/dev.pid"
}

# dev says "ready" when it has loaded everything, and what it could not load before that.
wait_until_ready() {
    local pid until=$((SECONDS + ready_minutes_max * 60))
    pid=$(cat "$data/dev.pid")
    while ! grep -q '^ready;' "$data/dev.log"; do
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -n 20 "$data/dev.log" >&2
            die "the cluster did not start; the lines above are the end of $shown/dev.log"
        fi
        if [ $SECONDS -gt $until ]; then
            die "not ready after $ready_minutes_max minutes, see $shown/dev.log; to stop it: kill $pid"
        fi
        sleep 0.5
    done
    sed '/^ *NODE /,$d' "$data/dev.log" >&2
    if grep -q 'not everything was loaded' "$data/dev.log"; then
        die "the cluster runs, but the patients were not all loaded; to stop it: kill $pid"
    fi
}

print_next_steps() {
    cat <<TRY

Three sites run on this machine, with 24 patients in them. Try:

  export CHARTHOLD_PROFILE=$shown/client.toml

  # read a record
  $program record get --patient $patient --type Patient --id $patient

  # lose a site, and read the whole chart all the same
  kill -9 \$(cat $shown/c1/node.pid); $program chart export $patient | wc -l

  # see who leads now
  $program --profile $shown/operator.toml cluster status

Start the lost site again:  $program start --config $shown/c1/config.toml
Stop everything:            kill \$(cat $shown/dev.pid)
Log:                        $shown/dev.log, and node.log in each node's folder
TRY
}

data="charthold-dev"
dev_options=()
while [ $# -gt 0 ]; do
    case "$1" in
    --yes) consented=yes ;;
    --data) data=${2:?a folder must follow --data} && shift ;;
    --base-port) dev_options=(--base-port "${2:?a port must follow --base-port}") && shift ;;
    -h | --help) usage && exit ;;
    *) usage >&2 && exit 2 ;;
    esac
    shift
done

# shellcheck disable=SC2119  # no further components or packages
need_rust && need_packages
data=$(realpath -m "$data")
charthold="$target/debug/charthold"
# As a person would type them here.
shown=$(realpath -m --relative-base="$PWD" "$data")
program=$(realpath -m --relative-base="$PWD" "$charthold")
cd "$root"

say "==> building (the first time, RocksDB takes about 20 minutes on two cores)"
CARGO_TARGET_DIR=$target cargo build --locked --workspace
if is_running; then
    say "==> it runs already"
else
    say "==> starting three sites and loading patients, log in $shown/dev.log"
    start "${dev_options[@]}"
    wait_until_ready
fi
print_next_steps
