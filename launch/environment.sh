# Sourced by the scripts beside it: makes .venv from the pinned requirements, once, and activates it.
# PYTHON chooses the interpreter (3.11 or 3.12).

make_environment() {
    local python="${PYTHON:-python3.11}" requirements=("$@")
    local stamp wanted
    stamp=".venv/requirements.sha256"
    if ! command -v "$python" > /dev/null; then
        python=python3
    fi
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'; then
        echo "crystal_jax needs Python 3.11 or 3.12; set PYTHON=/path/to/python" >&2
        return 1
    fi
    wanted="$(cat "${requirements[@]}" pyproject.toml | sha256sum) $("$python" --version)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "installing into .venv (once; some minutes)" >&2
        "$python" -m venv .venv
        .venv/bin/pip install --quiet "${requirements[@]/#/--requirement=}"
        .venv/bin/pip install --quiet --no-deps --editable .
        echo "$wanted" > "$stamp"
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
}
