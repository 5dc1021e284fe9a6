#!/usr/bin/env bash
# Runs jobs on TPU slices of a GKE cluster with XPK (pip install xpk), which uses JobSet and Kueue.
#
#   launch/xpk.sh --action=cluster --cluster=crystal --project=P --zone=Z
#   launch/xpk.sh --action=storage --cluster=crystal --project=P --zone=Z --bucket=B
#   launch/xpk.sh --action=image --image=REGION-docker.pkg.dev/P/crystal/train --project=P
#   launch/xpk.sh --name=llama7b --cluster=crystal --project=P --zone=Z --image=REGION-docker.pkg.dev/P/crystal/train \
#       -- train --config=configs/llama2_7b.py:tpu --workdir=/bucket/runs/7b --distributed
#
# --action=run      run the command after -- on every host of the slices; restart it after a pre-emption
#          cluster  create the cluster
#          storage  mount a Cloud Storage bucket at /bucket in the jobs of the cluster
#          image    build the container image (Cloud Build)
#          status   list all jobs
#          delete   delete the job --name
# --type=v5litepod-16, --slices=1    slice type and number of slices, of a job or of a new cluster
# --restarts=100    maximum number of restarts of a job
# --spot=yes        cheaper capacity that can be pre-empted
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
        run cp launch/Dockerfile Dockerfile # Cloud Build expects it there
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
