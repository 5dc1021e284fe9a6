#!/usr/bin/env bash
# Requests a TPU slice by Google's queued resources, and runs a command on all of its hosts.
#
#   launch/tpu_vm.sh --action=all --name=crystal --project=P --zone=Z --bucket=B \
#       -- train --config=configs/llama2_7b.py:tpu --workdir=bucket/runs/7b --distributed
#
# --action=create   request the slice
#          wait     wait until the slice is active
#          setup    copy this repository to every host, install it, mount the bucket at ~/crystal_jax/bucket
#          run      run the command after -- on every host; print its output here
#          all      all four; after a pre-emption start again with a new slice, until the command is done
#          status   show the state of the slice
#          delete   delete the slice
# --name=NAME       name of the slice; the default is crystal
# --project=, --zone=, --bucket=    Google Cloud project, zone, and the bucket for data, models and runs
# --type=v5litepod-16               accelerator type, with --runtime=v2-alpha-tpuv5-lite
# --spot=yes        cheaper capacity that can be pre-empted
# --dry_run         print the commands only
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action name project zone bucket type runtime spot"
action="" name=crystal project="" zone="" bucket="" type=v5litepod-16 runtime=v2-alpha-tpuv5-lite spot=yes
read_options "$@"
need action project zone
where=("--project=$project" "--zone=$zone")

create() {
    local how=()
    [ "$spot" != yes ] || how=(--spot)
    run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "--accelerator-type=$type" \
        "--runtime-version=$runtime" "${where[@]}" ${how[@]+"${how[@]}"}
}

state() {
    gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)" 2> /dev/null
}

wait_until_active() {
    if [ "$dry_run" = yes ]; then
        echo "# until the state is ACTIVE, every 30 seconds:"
        run gcloud compute tpus queued-resources describe "$name" "${where[@]}" "--format=value(state.state)"
        return
    fi
    local now
    while now="$(state)" && [ "$now" != ACTIVE ]; do
        case "$now" in
            FAILED | SUSPENDING | SUSPENDED | "") return 1 ;;
        esac
        echo "$name: $now" >&2
        sleep 30
    done
}

on_all_hosts() {
    run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"
}

# Chained by &&, because bash does not stop at errors within a condition.
setup() {
    need bucket
    local archive=crystal_jax.tar.gz
    run git archive --format=tar.gz --prefix=crystal_jax/ "--output=/tmp/$archive" HEAD &&
        run gcloud compute tpus tpu-vm scp "/tmp/$archive" "$name:" "${where[@]}" --worker=all &&
        on_all_hosts "tar -xzf $archive && crystal_jax/launch/tpu_host.sh $(quoted "$bucket")"
}

run_command() {
    need_command
    on_all_hosts "cd crystal_jax && source .venv/bin/activate && crystal-jax $(quoted "${command[@]}")"
}

delete() {
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

all() {
    need bucket
    need_command
    local status
    create
    while true; do
        status=0
        { wait_until_active && setup && run_command; } || status=$?
        [ "$status" != 0 ] || return 0
        sleep 60 # the state is updated some time after the machines stop
        if [ "$(state)" != ACTIVE ]; then
            echo "$name was taken away; asking for another" >&2
            delete || true
            create
        elif [ "$status" != 75 ]; then
            # A command that fails on an active slice would fail again.
            fail "status $status, see above; the slice is there: --action=run, or --action=delete"
        fi
    done
}

case "$action" in
    create) create ;;
    wait) wait_until_active ;;
    setup) setup ;;
    run) run_command ;;
    all) all ;;
    status) run gcloud compute tpus queued-resources describe "$name" "${where[@]}" ;;
    delete) delete ;;
    *) fail "no --action=$action; there are: create, wait, setup, run, all, status, delete" ;;
esac
