"""SmolLM2-135M with the paper's recipe (`lora`), or the same architecture from nothing (`scratch`), on the same tokens.

The bundle holds the model as llama.cpp's file, `smollm2.gguf`, whole or in pieces (`smollm2.gguf.00`, …), which
`launch/smollm2.sh` fetches; 98 MB are too much for one transfer, so pieces may come one by one into the output folder.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
from absl import flags

from benchmarks.gpu.case import Case
from benchmarks.gpu.timed_training import train_for
from configs import smollm2
from crystal_jax.checkpoint.formats.hf import read_config
from crystal_jax.checkpoint.run import convert

_ENOUGH = 20_000


def main() -> None:
    case = Case(__doc__, variant="lora")
    flags.FLAGS(["smollm2"])  # Grain reads absl flags of its own
    variant = case.options.variant
    config = smollm2.get_config(variant).to_dict()
    folder = weights(case)
    config["base"] = str(folder) if variant == "lora" else ""
    config["tokenizer"]["path"] = str(folder / "tokenizer.json")
    config["data"] |= dict(directory=str(case.bundle / "mp20_open"), batch_size=32)
    config["model"] = dataclasses.asdict(dataclasses.replace(read_config(folder), dtype="bfloat16"))
    config["train"]["peak_tflops"] = 989.0
    if case.dry_run:
        config["data"]["batch_size"] = len(jax.devices())
        config["train"]["eval_batches"] = 1
    train_for(case, config, case.output / f"smollm2-{variant}", seconds=case.seconds_left - 5, at_most=_ENOUGH)


def weights(case: Case) -> Path:
    """The model as a Hugging Face folder in the output, made of its file or of the pieces of it."""
    folder = case.output / "smollm2"
    if folder.is_dir():
        return folder
    for place in (case.bundle, case.output):
        whole, pieces = place / "smollm2.gguf", sorted(place.glob("smollm2.gguf.[0-9][0-9]"))
        if pieces and not whole.is_file():
            whole = case.output / "smollm2.gguf"
            whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        if whole.is_file():
            convert("gguf", "hf", input=whole, output=folder, dtype="float32")
            return folder
    raise SystemExit("no smollm2.gguf in the bundle: fetch it with launch/smollm2.sh, and split it if it must travel")


if __name__ == "__main__":
    main()
