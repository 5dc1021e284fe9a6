"""Trains `configs/crystal_small.py` for the time there is, and exports its weights in files of at most 16 MB.

Where the bundle holds the weights of an earlier call (`crystal_small/`), training goes on from them. The output folder
gets `crystal_small/`: the model, which `crystal-jax sample --checkpoint` reads, and its curve.
"""

from __future__ import annotations

import json
import shutil

import jax
from absl import flags

from benchmarks.gpu.case import Case
from benchmarks.gpu.timed_training import read_metrics, train_for
from configs import crystal_small
from crystal_jax.checkpoint.run import convert
from crystal_jax.storage.files import write_text

_EXPORT_SECONDS = 25.0
_MEGABYTES = 15.9
_ENOUGH = 12_000  # steps: 150 epochs of mp20_open
_TOY = dict(embed_dim=48, mlp_dim=64, num_layers=2, num_heads=3, num_kv_heads=3, head_dim=16)


def main() -> None:
    case = Case(__doc__)
    flags.FLAGS(["crystal_small"])  # Grain reads absl flags of its own
    before = case.bundle / "crystal_small"
    config = crystal_small.get_config("continued" if before.is_dir() else "scratch").to_dict()
    config["data"]["directory"] = str(case.bundle / "mp20_open")
    config["data"]["seed"] = config["train"]["seed"] = 1 if before.is_dir() else 0
    config["base"] = str(before) if before.is_dir() else ""
    config["mesh"] = dict(data=1, fsdp=1, tensor=1) if len(jax.devices()) == 1 else config["mesh"]
    if case.dry_run:
        config["model"] |= _TOY
        config["data"]["batch_size"] = 4 * len(jax.devices())
    workdir, exported = case.output / "crystal_small-run", case.output / "crystal_small"
    train_for(case, config, workdir, seconds=case.seconds_left - _EXPORT_SECONDS, at_most=_ENOUGH)
    shutil.rmtree(exported, ignore_errors=True)
    convert("crystal_jax", "hf", input=workdir, output=exported, dtype="bfloat16", shard_megabytes=_MEGABYTES)
    write_text(exported / "curve.json", json.dumps(read_metrics(workdir)))
    sizes = [path.stat().st_size for path in exported.iterdir()]
    case.answer.put(
        "exported", f"{len(sizes)} files, the largest {max(sizes) / 1e6:.1f} MB, {sum(sizes) / 1e6:.0f} MB in all"
    )


if __name__ == "__main__":
    main()
