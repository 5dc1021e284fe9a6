"""Peak memory of conversions against the size of the checkpoint, each in a process of its own.

    PYTHONPATH=. python benchmarks/load_memory.py --folder=/tmp/load_memory

Synthetic models of growing depth and equal width: if a conversion held the model, its peak would grow with the file.
Resident memory counts mapped pages of files too, and the imports, which a conversion of a tiny model shows.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

WIDTH, MLP, VOCABULARY = 2048, 5504, 32_000  # half of 7B's
DEPTHS = (1, 4, 10, 22)


def config(depth: int):
    from crystal_jax.model.presets import LLAMA2

    heads = WIDTH // 128
    sizes = dict(embed_dim=WIDTH, mlp_dim=MLP, num_heads=heads, num_kv_heads=heads, num_layers=depth)
    return dataclasses.replace(LLAMA2["7b"], vocab_size=VOCABULARY, **sizes)


class Synthetic:
    """Tensors of bfloat16 noise that are made when they are read."""

    path = Path("synthetic")

    def __init__(self, depth: int):
        self.config = config(depth)

    def shapes(self):
        from crystal_jax.checkpoint.tensors import expected_shapes

        return expected_shapes(self.config)

    def read(self, name: str):
        import ml_dtypes
        import numpy as np

        shape = self.shapes()[name]
        return np.random.default_rng(0).integers(0, 2**14, shape, np.uint16).view(ml_dtypes.bfloat16)


def write_meta(folder: Path, source: Synthetic) -> None:
    """Two shards as Meta's; PyTorch writes them whole, so they are made in a process of their own."""
    import json

    import numpy as np
    import torch

    from crystal_jax.checkpoint.meta import _BLOCK, _NAMES
    from crystal_jax.checkpoint.tensors import heads_of, unpermute

    folder.mkdir()
    names = {hf: (meta, axis) for meta, (hf, axis) in _NAMES.items()}
    for i in range(source.config.num_layers):
        names |= {f"model.layers.{i}.{hf}.weight": (f"layers.{i}.{m}.weight", axis) for m, (hf, axis) in _BLOCK.items()}
    for shard in range(2):
        tensors = {}
        for name in source.shapes():
            meta, axis = names[name]
            tensor = source.read(name)
            if heads := heads_of(name, source.config):
                tensor = unpermute(tensor, heads)
            part = tensor if axis is None else np.split(tensor, 2, axis)[shard]
            tensors[meta] = torch.from_numpy(np.ascontiguousarray(part).view(np.int16)).view(torch.bfloat16)
        torch.save(tensors, folder / f"consolidated.{shard:02}.pth")
    cfg = source.config
    params = dict(
        dim=cfg.embed_dim, n_layers=cfg.num_layers, n_heads=cfg.num_heads, vocab_size=-1, norm_eps=cfg.norm_eps
    )
    (folder / "params.json").write_text(json.dumps(params))


def write_gguf(path: Path, source: Synthetic) -> None:
    """Half-precision tensors, streamed through gguf's own writer."""
    import gguf
    import numpy as np

    from crystal_jax.checkpoint.gguf import _BLOCK, _NAMES
    from crystal_jax.checkpoint.tensors import heads_of, unpermute

    cfg = source.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(cfg.embed_dim)
    writer.add_feed_forward_length(cfg.mlp_dim)
    writer.add_block_count(cfg.num_layers)
    writer.add_head_count(cfg.num_heads)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    keys = {hf: gg for gg, hf in _NAMES.items()}
    for i in range(cfg.num_layers):
        keys |= {f"model.layers.{i}.{hf}.weight": f"blk.{i}.{gg}.weight" for gg, hf in _BLOCK.items()}
    for name, shape in source.shapes().items():
        writer.add_tensor_info(keys[name], shape, np.dtype(np.float16), int(np.prod(shape)) * 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name in source.shapes():
        tensor = source.read(name).astype(np.float16)
        heads = heads_of(name, cfg)
        writer.write_tensor_data(unpermute(tensor, heads) if heads else tensor)
    writer.close()


def make(kind: str, depth: int, path: Path) -> None:
    from crystal_jax.checkpoint.easylm import write_easylm
    from crystal_jax.checkpoint.hf import DTYPES, write_hf

    source = Synthetic(depth)
    if kind == "hf":
        write_hf(path, source, dtype="bfloat16", shard_bytes=2**29)
    elif kind == "easylm":
        write_easylm(path, source, dtype=DTYPES["bfloat16"])
    elif kind == "meta":
        write_meta(path, source)
    else:
        write_gguf(path, source)


def work(kind: str, write_as: str, depth: int, path: Path, output: Path) -> None:
    """Converts and prints the peak in MiB."""
    from crystal_jax.checkpoint import easylm, hf
    from crystal_jax.checkpoint.hf import config_json
    from crystal_jax.checkpoint.run import _open

    if kind == "easylm":
        import json

        folder = output.parent / "architecture"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config_json(config(depth), "bfloat16")))
        source = _open(kind, path, base=None, architecture=str(folder), step=None)
    else:
        source = _open(kind, path, base=None, architecture=None, step=None)
    if write_as == "hf":
        hf.write_hf(output, source, dtype="bfloat16", shard_bytes=2**28)
    else:
        easylm.write_easylm(output, source, dtype=hf.DTYPES["bfloat16"])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def size_of(path: Path) -> float:
    files = [path] if path.is_file() else path.iterdir()
    return sum(file.stat().st_size for file in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="scratch space, 6 GB")
    parser.add_argument("--step", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.step:
        action, kind, write_as, depth, path = arguments.step
        if action == "make":
            make(kind, int(depth), Path(path))
        else:
            work(kind, write_as, int(depth), Path(path), folder / "output")
        return

    def run(*step: str) -> str:
        command = [sys.executable, __file__, f"--folder={folder}", "--step", *step]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ).stdout.strip()

    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'from':<8}{'to':<8}{'file MiB':>10}{'peak MiB':>10}", flush=True)
    for kind, write_as in (("hf", "hf"), ("hf", "easylm"), ("easylm", "hf"), ("meta", "hf"), ("gguf", "hf")):
        for depth in DEPTHS:
            path = folder / f"{kind}-{depth}"
            run("make", kind, write_as, str(depth), str(path))
            peak = run("work", kind, write_as, str(depth), str(path))
            print(f"{kind:<8}{write_as:<8}{size_of(path):>10,.0f}{int(peak):>10,}", flush=True)
            for leftover in (path, folder / "output", folder / "architecture"):
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
