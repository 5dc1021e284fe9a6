#!/usr/bin/env bash
# Runs the whole workflow on embedded data: crystals in, new crystals and a report out. Flags go to `crystal-jax demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements.txt
crystal-jax demo "$@"
