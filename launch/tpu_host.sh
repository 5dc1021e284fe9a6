#!/usr/bin/env bash
# Runs on a TPU host, called by tpu_vm.sh: installs this repository, and mounts a Cloud Storage bucket in its folder.
set -euo pipefail
cd "$(dirname "$0")/.."
bucket="$1"
if ! command -v gcsfuse > /dev/null; then
    release="gcsfuse-$(lsb_release --codename --short)"
    key=/usr/share/keyrings/cloud.google.asc
    curl --silent --show-error --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt $release main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    # A new machine updates itself and holds apt's lock meanwhile.
    sudo apt-get -o DPkg::Lock::Timeout=300 update --quiet
    sudo apt-get -o DPkg::Lock::Timeout=300 install --yes --quiet gcsfuse
fi
mkdir -p bucket
mountpoint --quiet bucket || gcsfuse --implicit-dirs --rename-dir-limit=10000 "$bucket" bucket
# The image has an older Python; uv installs a newer one.
python3 -m pip install --user --quiet uv
uv="$HOME/.local/bin/uv"
[ -d .venv ] || "$uv" venv --quiet --python=3.11 .venv
"$uv" pip install --quiet --python=.venv --requirement=requirements.txt
"$uv" pip install --quiet --python=.venv --constraint=requirements.txt --editable ".[tpu]"
