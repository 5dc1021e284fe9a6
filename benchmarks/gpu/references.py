"""Adds to the bundle what the CPU computes of `numbers.py`: logits, samples and losses to compare a GPU's with.

JAX_PLATFORMS=cpu python -m benchmarks.gpu.references --bundle=gpu_bundle
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.gpu import numbers
from benchmarks.gpu.bundle import add_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--toy", action="store_true", help="train a toy, for a dry run")
    args = parser.parse_args()
    flags.FLAGS(["references"])  # Grain reads absl flags of its own
    if jax.default_backend() != "cpu":
        parser.error("references are the CPU's: set JAX_PLATFORMS=cpu")
    model = numbers.crystal_tiny_model("float32")
    content = io.BytesIO()
    np.savez_compressed(content, logits=numbers.logits(model, numbers.some_tokens(model)))
    add_file(args.bundle, "crystal_tiny_logits.npz", content.getvalue())
    with tempfile.TemporaryDirectory() as folder:
        texts = numbers.texts(Path(folder) / "samples", args.samples)
        losses = numbers.losses(args.bundle / "mp20_open", Path(folder) / "run", args.steps, toy=args.toy)
    add_file(args.bundle, "crystal_tiny_texts.json", json.dumps(texts).encode())
    add_file(args.bundle, "crystal_tiny_losses.json", json.dumps(losses).encode())
    print(f"{args.bundle}: {len(texts)} samples, {len(losses)} losses, from {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
