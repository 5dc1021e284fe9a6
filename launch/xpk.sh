#!/usr/bin/env bash
# Jobs on TPU slices of a GKE cluster, by XPK (pip install xpk): JobSet and Kueue underneath.
#
#   launch/xpk.sh --action=cluster --cluster=crystal --project=P --zone=Z
#   launch/xpk.sh --action=storage --cluster=crystal --project=P --zone=Z --bucket=B
#   launch/xpk.sh --action=image --image=REGION-docker.pkg.dev/P/crystal/train --project=P
#   launch/xpk.sh --name=llama7b --cluster=crystal --project=P --zone=Z --image=REGION-docker.pkg.dev/P/crystal/train \
#       -- train --config=configs/llama2_7b.py:tpu --workdir=/bucket/runs/7b --distributed
#
# --action=run      the command behind --, on every host of the slices; started again when a slice is taken away
#          cluster  make the cluster
#          storage  let jobs of the cluster see a Cloud Storage bucket as /bucket
#          image    build the container image (Cloud Build)
#          status   of all jobs
#          delete   the job --name
# --type=v5litepod-16, --slices=1    of a job, and of the cluster when it is made
# --restarts=100    how often a job is started again
# --spot=yes        cheaper, and taken away at times
# --dry_run         print the commands only
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action name cluster project zone bucket image type slices restarts spot"
action=run name="" cluster="" project="" zone="" bucket="" image="" type=v5litepod-16 slices=1 restarts=100 spot=yes
read_options "$@"
need project
[ "$action" = image ] || need cluster zone
where=("--cluster=$cluster" "--project=$project" "--zone=$zone")
capacity=--on-demand
[ "$spot" != yes ] || capacity=--spot

case "$action" in
    run)
        need name image
        need_command
        run xpk workload create "--workload=$name" "${where[@]}" "--tpu-type=$type" "--num-slices=$slices" \
            "--docker-image=$image" "--max-restarts=$restarts" --restart-on-exit-codes=75 \
            "--command=cd /crystal_jax && crystal-jax $(quoted "${command[@]}")"
        ;;
    cluster)
        run xpk cluster create "${where[@]}" "--tpu-type=$type" "--num-slices=$slices" "$capacity" \
            --enable-workload-identity --enable-gcsfuse-csi-driver
        ;;
    storage)
        need bucket
        run xpk storage attach "$bucket" "${where[@]}" --type=gcsfuse "--bucket=$bucket" --size=1000 \
            --mount-point=/bucket --readonly=false --auto-mount=true
        ;;
    image)
        need image
        run cp launch/Dockerfile Dockerfile # where Cloud Build looks for it
        run gcloud builds submit . "--tag=$image" "--project=$project"
        run rm Dockerfile
        ;;
    status) run xpk workload list "${where[@]}" ;;
    delete)
        need name
        run xpk workload delete "--workload=$name" "${where[@]}"
        ;;
    *) fail "no --action=$action; there are: run, cluster, storage, image, status, delete" ;;
esac
