#!/usr/bin/env bash
# All checks: format, lint, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements.txt requirements-dev.txt
install_peers
ruff format --check .
ruff check .
mypy
pytest "$@"
