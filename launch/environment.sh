# shellcheck shell=bash
# Sourced by the scripts in this folder: creates .venv from pinned requirements, once, and activates it.
# PYTHON sets the interpreter (3.11 to 3.14). Installs with uv if there is one, with pip if not.

# The requirements files name every package (launch/lock.sh), so nothing has to be resolved. Bytecode is compiled when a
# module is first imported: compiling all of it beforehand takes three times as long as the rest of the installation.
install_pins() {
    if command -v uv > /dev/null; then
        uv pip install --quiet --python=.venv/bin/python --no-deps "$@"
    else
        .venv/bin/python -m pip install --quiet --no-compile --no-deps "$@"
    fi
}

make_environment() {
    local python="${PYTHON:-python3.11}" requirements wanted stamp
    command -v "$python" > /dev/null || python=python3
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'; then
        echo "crystal_jax needs Python 3.11 to 3.14; set PYTHON=/path/to/python" >&2
        return 1
    fi
    if ! "$python" -c 'import sys; v = sys.version_info; sys.exit(f"python{v[0]}.{v[1]}" not in sys.argv[1])' \
        "$(ls .venv/lib 2> /dev/null)"; then
        rm -rf .venv
        "$python" -m venv .venv || { rm -rf .venv; return 1; }  # a half-made one would be taken for whole
    fi
    for requirements in "$@"; do
        stamp=".venv/$requirements.sha256"
        wanted="$(cat "$requirements" pyproject.toml | sha256sum)"
        if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
            echo "installing $requirements into .venv (once)" >&2
            install_pins --requirement="$requirements" --editable=.
            echo "$wanted" > "$stamp"
        fi
    done
    # shellcheck disable=SC1091
    source .venv/bin/activate
}

# Installs PyTorch's CPU build, energy models, and Hugging Face's libraries for comparison. The CPU build is not on PyPI,
# whose build has gigabytes of CUDA. pip installs it even where there is uv, because pip's configuration may name a nearer
# index. If no index has a CPU build for this machine, tests that need it are skipped.
install_peers() {
    local stamp=".venv/requirements-peers.txt.sha256" wanted
    wanted="$(cat requirements-peers.txt requirements-energies.txt | sha256sum)"
    [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ] || return 0
    if .venv/bin/python -m pip install --quiet --no-compile --no-deps "torch==2.13.0+cpu" \
        --extra-index-url https://download.pytorch.org/whl/cpu 2> .venv/torch.log; then
        install_pins --requirement=requirements-peers.txt --requirement=requirements-energies.txt
        echo "$wanted" > "$stamp"
    else
        echo "no CPU build of PyTorch for this Python and machine: tests that compare with it are skipped" >&2
    fi
}
