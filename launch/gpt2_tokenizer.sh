#!/usr/bin/env bash
# Extracts GPT-2's byte-level BPE from a pip package into models/gpt2/tokenizer.json. Needs no other download.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements.txt
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
# The source archive is not installed: that would also install PyTorch, and only one file is needed.
pip download --quiet --no-deps --dest="$folder" openai-whisper==20250625
tar --extract --gzip --file="$folder/openai_whisper-20250625.tar.gz" --directory="$folder" \
    openai_whisper-20250625/whisper/assets/gpt2.tiktoken
python -c "
import sys
from pathlib import Path
from crystal_jax.text.tiktoken import write_tokenizer
write_tokenizer(Path(sys.argv[1]), Path('models/gpt2'))" \
    "$folder/openai_whisper-20250625/whisper/assets/gpt2.tiktoken"
echo "written: models/gpt2/tokenizer.json"
