#!/usr/bin/env bash
# Reproduces the released model crystal-tiny: data set, training, export, samples, evaluations. Run it again to resume.
# usage: launch/crystal_tiny.sh FOLDER (with mp20_open's train.csv.gz, val.csv.gz and test.csv.gz)
set -euo pipefail
cd "$(dirname "$0")/.."
[ -d "${1:-}" ] || { echo "usage: launch/crystal_tiny.sh FOLDER (with train.csv.gz, val.csv.gz, test.csv.gz)" >&2; exit 2; }
folder="$(cd "$1" && pwd)" runs=runs/crystal-tiny data=data/mp20/mp20_open/1.0.0
source launch/environment.sh
make_environment requirements.txt
crystal-jax prepare --dataset=mp20_open --manual_dir="$folder"
crystal-jax train --config=configs/crystal_tiny.py:scratch --config.data.directory="$data" --workdir="$runs/train"
[ -d "$runs/crystal-tiny" ] \
    || crystal-jax convert --from=crystal_jax --to=hf --dtype=float16 --input="$runs/train" --output="$runs/crystal-tiny"
for temperature in 1.0 0.7; do
    for constraints in "" charge,distance; do
        name="$temperature${constraints:+,$constraints}"
        number=$([ -z "$constraints" ] && echo 10000 || echo 1000)
        crystal-jax sample --checkpoint="$runs/crystal-tiny" --num_samples="$number" --temperature="$temperature" \
            --constraints="$constraints" --output="$runs/samples/$name"
        crystal-jax evaluate --samples="$runs/samples/$name/samples.csv" --reference="$data:test" \
            --train_reference="$data:train" --output="$runs/evaluations/$name"
    done
done
