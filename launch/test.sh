#!/usr/bin/env bash
# Runs all checks: format, lint, types, and tests in two processes. Arguments go to pytest (`-n 4`: four processes).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements.txt requirements-dev.txt
install_peers
ruff format --check .
ruff check .
mypy
pytest -n 2 --dist worksteal "$@"
