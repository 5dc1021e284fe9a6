#!/usr/bin/env bash
# Measures this project on the NVIDIA GPU of this machine. Goes on where it stopped; ends within its budget by itself.
# usage: benchmarks/gpu/run.sh --bundle=FOLDER --output=FOLDER [--budget_seconds=540] [--parts=correct,train,sample]
#        [--wheels=FOLDER, of launch/gpu_wheels.sh: installed first, for a machine without network] [--dry_run]
set -euo pipefail
cd "$(dirname "$0")/../.."
arguments=()
for argument in "$@"; do
    case "$argument" in
        --wheels=*)
            site="${TMPDIR:-/tmp}/crystal_jax-site"
            python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$site" \
                "${argument#--wheels=}"/*.whl
            export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
            ;;
        *) arguments+=("$argument") ;;
    esac
done
exec python3 -m benchmarks.gpu.run "${arguments[@]}"
