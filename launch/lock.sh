#!/usr/bin/env bash
# Pins every dependency in uv.lock and exports the pins to the requirements files, which need no resolver to install.
# usage: launch/lock.sh            after a change of pyproject.toml; options go to `uv lock` (--upgrade-package=NAME)
#        launch/lock.sh --check    fails unless uv.lock fits pyproject.toml and the requirements files fit uv.lock
set -euo pipefail
cd "$(dirname "$0")/.."
command -v uv > /dev/null || { echo "lock.sh needs uv: pip install uv" >&2; exit 2; }
folder=.
if [ "${1:-}" = --check ]; then
    folder="$(mktemp -d)"
    trap 'rm -rf "$folder"' EXIT
    set -- --check --offline
fi
uv lock --quiet "$@" || { echo "uv.lock does not fit pyproject.toml: run launch/lock.sh" >&2; exit 1; }

# PyTorch comes from its own index, as a CPU build: environment.sh.
export_pins() {
    uv export --quiet --frozen --offline --no-hashes --no-annotate --no-header --no-emit-project --prune=torch "$@"
}

# Writes FILE, with a comment and the pins that standard input has.
requirements_file() {
    local file="$1" comment="$2"
    {
        echo "# $comment"
        echo "# Exported from uv.lock by launch/lock.sh."
        cat
    } > "$folder/$file"
    [ "$folder" = . ] || diff -u "$file" "$folder/$file" ||
        { echo "$file does not fit uv.lock: run launch/lock.sh" >&2; return 1; }
}

base="$(export_pins)"
requirements_file requirements.txt "What crystal_jax needs." <<< "$base"
export_pins --extra=dev | requirements_file requirements-dev.txt "What crystal_jax and launch/test.sh need."
export_pins --extra=energies --extra=ray | grep -vxF "$base" | requirements_file requirements-energies.txt \
    "What evaluate --energy_model and --ray_address need besides requirements.txt and PyTorch."
export_pins --extra=peers --group=comparisons | grep -vxF "$base" | requirements_file requirements-peers.txt \
    "What tests and benchmarks compare with, besides requirements.txt and PyTorch."
