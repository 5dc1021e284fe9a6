#!/usr/bin/env bash
# Draws many samples in independent jobs with different seeds, and merges them into one table.
#
#   launch/sample_shards.sh --shards=8 --num_samples=10000 --checkpoint=runs/7b --output=samples/7b \
#       --engine=slurm --engine_options="--gpus=1" -- --top_p=0.9 --constraints=charge,distance
#   launch/sample_shards.sh --action=merge --shards=8 --output=samples/7b
#
# --action=run      run the jobs: samples go to OUTPUT/shard-0, OUTPUT/shard-1, …; a job that is started again resumes
#          merge    merge the samples of all jobs into OUTPUT/samples.csv and samples.jsonl
# --shards=4        number of jobs
# --num_samples=10000    number of samples of all jobs together
# --checkpoint=DIR  workdir of a training run
# --temperature=1.0
# --seed=0          seed of the first job; job i has SEED+i
# --engine=local    run the jobs here, one after another; or xpk, skypilot, slurm
# --engine_options=…     options of launch/ENGINE.sh; jobs are named sample-0, sample-1, …
# --dry_run         print the commands only
#
# Flags of 'crystal-jax sample' for all jobs go after --. A job on a slice of several hosts needs --distributed.
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
        # The first jobs take the remainder.
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
        # Only the header of the first file is kept; it is always one line, also if rows have several.
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
