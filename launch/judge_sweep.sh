#!/usr/bin/env bash
# Samples, evaluates and scores every finished run of a sweep. Finished parts are skipped, so a stopped script resumes.
#
#   launch/judge_sweep.sh --output=runs/equal_budget --data=data/mp20/mp20_open --test=test.csv.gz
#
# --output=DIR        folder of the sweep's runs
# --data=DIR          the prepared data set; its test split is the reference, its training split is for novelty
# --test=CSV          crystals to score, with a column cif
# --num_samples=1000  samples per run
# --translations=20   translations per scored crystal, for IPT; 0 for none
# --dry_run           print the commands only
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/options.sh
OPTIONS="output data test num_samples translations"
output="" data="" test="" num_samples=1000 translations=20
read_options "$@"
need output data test
cli=("${PYTHON:-python3}" -m crystal_jax.cli)

for workdir in "$output"/*/; do
    workdir="${workdir%/}"
    [ -d "$workdir/checkpoints" ] || continue
    run "${cli[@]}" sample "--checkpoint=$workdir" "--num_samples=$num_samples" --constraints=none \
        "--output=$workdir/samples"
    [ -f "$workdir/evaluation/metrics.json" ] || run "${cli[@]}" evaluate "--samples=$workdir/samples/samples.csv" \
        "--reference=$data:test" "--train_reference=$data:train" "--output=$workdir/evaluation"
    run "${cli[@]}" score "--checkpoint=$workdir" "--samples=$test" "--translations=$translations" \
        "--output=$workdir/scores"
done
