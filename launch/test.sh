#!/usr/bin/env bash
# All checks: format, lint, types, tests, these in two processes. Arguments go to pytest (`-n 4`: in four).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements.txt requirements-dev.txt
install_peers
ruff format --check .
ruff check .
mypy
pytest -n 2 --dist worksteal "$@"
