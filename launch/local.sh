#!/usr/bin/env bash
# Runs N processes of one command on this machine, as the hosts of a pod do.
#
#   launch/local.sh --processes=2 --devices=4 -- train --config=configs/smoke.py --workdir=runs/smoke
#
# --processes=2    number of processes
# --devices=N      simulate N devices on the CPU of each process; without it the processes share the accelerators
# --port=N         port of the first process, which the others connect to (default: a free one)
# --logs=DIR       folder for the output of the other processes (default: a new folder in /tmp)
# --dry_run        print the commands only
#
# The script ends when all processes have ended. If one process fails, the others are stopped. SIGTERM is passed on to all
# processes. The exit status is that of the first process that failed; 75 means pre-empted: run the command again.
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
            # After a pre-emption the other processes get the time to save and stop.
            [ "$code" = 75 ] || kill -KILL "${children[@]}" 2> /dev/null || true
        fi
    done
    children=(${alive[@]+"${alive[@]}"})
    sleep 0.1 || true # a signal interrupts the sleep and is handled here
done
exit "$status"
