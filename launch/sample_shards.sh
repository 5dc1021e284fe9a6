#!/usr/bin/env bash
# Many samples as independent jobs, each with a seed of its own, and then one table of them.
#
#   launch/sample_shards.sh --shards=8 --num_samples=10000 --checkpoint=runs/7b --output=samples/7b \
#       --engine=slurm --engine_options="--gpus=1" -- --top_p=0.9 --constraints=charge,distance
#   launch/sample_shards.sh --action=merge --shards=8 --output=samples/7b
#
# --action=run      the jobs: samples go to OUTPUT/shard-0, OUTPUT/shard-1, …; a job that is started again goes on
#          merge    OUTPUT/samples.csv and samples.jsonl of what all of them wrote
# --shards=4        how many jobs
# --num_samples=10000    in all
# --checkpoint=DIR  the workdir of a training run
# --temperature=1.0 and --seed=0, which is the first job's
# --engine=local    one after another here; or xpk, skypilot, slurm
# --engine_options=…     for launch/ENGINE.sh; jobs are named sample-0, sample-1, …
# --dry_run         print the commands only
#
# Behind -- stand further flags of 'crystal-jax sample', for all jobs alike. A job on a slice of several hosts needs
# --distributed, so that they draw it together.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="action shards num_samples checkpoint output temperature seed engine engine_options"
action=run shards=4 num_samples=10000 checkpoint="" output="" temperature=1.0 seed=0 engine=local engine_options=""
read_options "$@"
need output
read -ra options <<< "$engine_options"
flags=(${command[@]+"${command[@]}"})

sample() {
    local i share
    for ((i = 0; i < shards; i++)); do
        # The first jobs take what does not divide.
        share=$((num_samples / shards + (i < num_samples % shards ? 1 : 0)))
        command=(sample "--checkpoint=$checkpoint" "--num_samples=$share" "--temperature=$temperature"
            "--seed=$((seed + i))" "--output=$output/shard-$i" ${flags[@]+"${flags[@]}"})
        case "$engine" in
            local) run "${PYTHON:-python3}" -m crystal_jax.cli "${command[@]}" ;;
            xpk | skypilot | slurm)
                run "launch/$engine.sh" "--name=sample-$i" ${options[@]+"${options[@]}"} -- "${command[@]}"
                ;;
            *) fail "no --engine=$engine; there are: local, xpk, skypilot, slurm" ;;
        esac
    done
}

merge() {
    local i
    for ((i = 0; i < shards; i++)); do
        [ -f "$output/shard-$i/samples.csv" ] || fail "$output/shard-$i/samples.csv is missing: run its job first"
    done
    for ((i = 0; i < shards; i++)); do
        # The header of the first only; it is one line, whatever the rows below it hold.
        tail -n "+$((i > 0 ? 2 : 1))" "$output/shard-$i/samples.csv"
    done > "$output/samples.csv.part"
    mv "$output/samples.csv.part" "$output/samples.csv"
    for ((i = 0; i < shards; i++)); do
        cat "$output/shard-$i/samples.jsonl"
    done > "$output/samples.jsonl.part"
    mv "$output/samples.jsonl.part" "$output/samples.jsonl"
    echo "$output/samples.csv"
}

case "$action" in
    run)
        need checkpoint
        sample
        ;;
    merge)
        if [ "$dry_run" = yes ]; then
            echo "# rows of $output/shard-*/samples.csv → $output/samples.csv"
        else
            merge
        fi
        ;;
    *) fail "no --action=$action; there are: run, merge" ;;
esac
