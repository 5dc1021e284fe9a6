#!/usr/bin/env bash
# Starts a job with SkyPilot (pip install skypilot), which finds a machine and, after a pre-emption, another one. The
# template is for v5e TPUs on Google Cloud: other devices need their runtime_version and setup in launch/skypilot.yaml.
#
#   launch/skypilot.sh --name=llama7b --bucket=B -- train --config=configs/llama2_7b.py:tpu --workdir=/bucket/runs/7b --distributed
#
# --name=NAME       name of the job
# --bucket=NAME     bucket for data, models and runs, mounted at /bucket
# --type=tpu-v5litepod-16    accelerators, by SkyPilot's name
# --infra=gcp       cloud, or CLOUD/REGION
# --action=run      or status, or cancel (the job --name)
# --dry_run         print the commands only
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action name bucket type infra"
action=run name="" bucket="" type=tpu-v5litepod-16 infra=gcp
read_options "$@"

case "$action" in
    run)
        need name bucket
        need_command
        run sky jobs launch --yes --detach-run "--name=$name" "--infra=$infra" "--gpus=$type" --env "BUCKET=$bucket" \
            --env "COMMAND=$(quoted "${command[@]}")" launch/skypilot.yaml
        ;;
    status) run sky jobs queue ;;
    cancel)
        need name
        run sky jobs cancel --yes "--name=$name"
        ;;
    *) fail "no --action=$action; there are: run, status, cancel" ;;
esac
