#!/usr/bin/env bash
# N processes of one command on this machine, the way the hosts of a pod run it.
#
#   launch/local.sh --processes=2 --devices=4 -- train --config=configs/smoke.py --workdir=runs/smoke
#
# --processes=2    how many
# --devices=N      let each believe that its CPU is N devices; without it they share the accelerators there are
# --port=N         of the first process, by which the others find it (default: a free one)
# --logs=DIR       where the other processes write what they say (default: a new folder in /tmp)
# --dry_run        print the commands only
#
# Ends when all have ended. If one fails, the others are ended too. SIGTERM is passed on to all. The exit status is that
# of the first process that failed; 75 says: pre-empted, run it again.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="processes devices port logs"
processes=2 devices="" port="" logs=""
read_options "$@"
need processes
need_command
python="${PYTHON:-python3}"
if [ -z "$port" ]; then
    port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')"
fi
if [ -n "$devices" ]; then
    export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
    [ "$dry_run" = no ] || echo "export JAX_PLATFORMS=cpu XLA_FLAGS=$(quoted "$XLA_FLAGS")"
fi
if [ -z "$logs" ] && [ "$dry_run" = no ]; then
    logs="$(mktemp -d "${TMPDIR:-/tmp}/crystal_jax.XXXXXX")"
fi

children=()
for ((i = 0; i < processes; i++)); do
    line=("$python" -m crystal_jax.cli "${command[@]}" --distributed "--coordinator_address=localhost:$port"
        "--num_processes=$processes" "--process_id=$i")
    if [ "$dry_run" = yes ]; then
        run "${line[@]}"
    elif [ "$i" = 0 ]; then
        "${line[@]}" &
        children+=($!)
    else
        mkdir -p "$logs"
        "${line[@]}" > "$logs/process$i.log" 2>&1 &
        children+=($!)
    fi
done
[ "$dry_run" = no ] || exit 0
[ "$processes" = 1 ] || echo "the other processes write to $logs" >&2

trap 'kill -TERM "${children[@]}" 2> /dev/null || true' TERM INT
status=0
while [ ${#children[@]} -gt 0 ]; do
    alive=()
    for child in "${children[@]}"; do
        if kill -0 "$child" 2> /dev/null; then
            alive+=("$child")
            continue
        fi
        code=0
        wait "$child" || code=$?
        if [ "$code" != 0 ] && [ "$status" = 0 ]; then
            status="$code"
            # Those that were asked to stop together are given the time to.
            [ "$code" = 75 ] || kill -KILL "${children[@]}" 2> /dev/null || true
        fi
    done
    children=(${alive[@]+"${alive[@]}"})
    sleep 0.1 || true # a signal ends the sleep, and is handled here
done
exit "$status"
