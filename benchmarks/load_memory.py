"""Peak memory of conversions against the size of the checkpoint, each in a process of its own.

    PYTHONPATH=. python benchmarks/load_memory.py --folder=/tmp/load_memory

Synthetic models of growing depth and equal width: if a conversion held the model, its peak would grow with the file.
Each is what `crystal-jax convert` does, called as a function. `mesh` is how a run takes its base: there the arrays
themselves, which are the whole model on one device, are subtracted from the peak. Resident memory counts mapped pages
of files too, and the imports. Needs PyTorch, for Meta's format.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

WIDTH, MLP, VOCABULARY = 2048, 5504, 32_000  # half of 7B's
DEPTHS = (1, 22)
ROUTES = {  # what is made → what it is converted to
    "hf": ("hf", "easylm", "quantized", "mesh"),
    "peft": ("hf", "crystal_jax"),
    "crystal_jax": ("hf", "easylm", "peft"),
    "easylm": ("hf", "easylm"),
    "meta": ("hf", "easylm"),
    "llama2c": ("hf", "easylm"),
    "gguf": ("hf", "easylm"),
}
ON_A_BASE = ("peft", "crystal_jax")  # adapters; the base is a Hugging Face folder, and counts in the size


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
    import numpy as np
    import torch

    from crystal_jax.checkpoint.formats.meta import _BLOCK, _NAMES
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

    from crystal_jax.checkpoint.formats.gguf import _BLOCK, _NAMES
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


def write_llama2c(path: Path, source: Synthetic) -> None:
    """float32, as llama2.c has it, in its own order of tensors."""
    import numpy as np

    from crystal_jax.checkpoint.formats.llama2c import _BLOCK
    from crystal_jax.checkpoint.tensors import heads_of, unpermute

    cfg = source.config
    sizes = (cfg.embed_dim, cfg.mlp_dim, cfg.num_layers, cfg.num_heads, cfg.num_kv_heads, -cfg.vocab_size, 0)
    names = [f"model.layers.{i}.{part}.weight" for part in _BLOCK for i in range(cfg.num_layers)]
    with path.open("wb") as file:
        np.array(sizes, "<i4").tofile(file)
        for name in ("model.embed_tokens.weight", *names, "model.norm.weight", "lm_head.weight"):
            tensor, heads = source.read(name).astype(np.float32), heads_of(name, cfg)
            (unpermute(tensor, heads) if heads else tensor).tofile(file)


def write_adapter(folder: Path, source: Synthetic, base: Path) -> None:
    """R = 8 on q and v."""
    import numpy as np

    from crystal_jax.checkpoint.formats.peft import Adapter, write_peft
    from crystal_jax.config import LoraConfig

    lora = LoraConfig(rank=8, alpha=32.0, targets=("q", "v"))
    shapes = {"A": (8, WIDTH), "B": (WIDTH, 8)}
    factors = {
        (target, layer, factor): np.full(shape, 0.01, np.float32)
        for target in lora.targets
        for layer in range(source.config.num_layers)
        for factor, shape in shapes.items()
    }
    write_peft(folder, Adapter(folder, lora, factors), base=str(base))


def run_config(depth: int) -> dict:
    """The configuration of a run that trains the adapter."""
    from configs import llama2_7b

    tree = llama2_7b.get_config().to_dict()
    tree["model"] |= {key: value for key, value in dataclasses.asdict(config(depth)).items() if key in tree["model"]}
    tree["lora"] |= dict(rank=8, alpha=32.0, targets=("q", "v"), dropout=0.0)
    tree["mesh"] = dict(data=1, fsdp=1, tensor=1)
    return tree


def make(kind: str, depth: int, folder: Path) -> None:
    from crystal_jax.checkpoint.formats.easylm import write_easylm
    from crystal_jax.checkpoint.formats.hf import DTYPES, config_json, write_hf
    from crystal_jax.checkpoint.run import convert

    source, path, base = Synthetic(depth), folder / kind, folder / "hf"
    if kind == "hf":
        write_hf(path, source, dtype="bfloat16", shard_bytes=2**29)
    elif kind == "easylm":
        (folder / "architecture").mkdir()
        (folder / "architecture/config.json").write_text(json.dumps(config_json(config(depth), "bfloat16")))
        write_easylm(path, source, dtype=DTYPES["bfloat16"])
    elif kind == "peft":
        write_adapter(path, source, base)
    elif kind == "crystal_jax":
        convert("peft", kind, input=folder / "peft", output=path, base=base, config=run_config(depth))
    else:
        {"meta": write_meta, "gguf": write_gguf, "llama2c": write_llama2c}[kind](path, source)


def work(kind: str, write_as: str, depth: int, folder: Path) -> None:
    """Converts and prints the peak in bytes."""
    held = 0
    if write_as == "mesh":
        held = load_base(folder / kind, depth)
    else:
        from crystal_jax.checkpoint.run import convert

        convert(
            kind,
            write_as,
            input=folder / kind,
            output=folder / "output",
            base=folder / "hf" if kind == "peft" else None,
            architecture=str(folder / "architecture") if kind == "easylm" else None,
            config=run_config(depth) if write_as == "crystal_jax" else None,
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held)


def load_base(path: Path, depth: int) -> int:
    """Reads the frozen base of a run onto a mesh of one device, and returns its bytes."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from crystal_jax.checkpoint.layout import load
    from crystal_jax.checkpoint.models import base_source
    from crystal_jax.config import UNQUANTIZED, MeshConfig
    from crystal_jax.model.frozen_base.memory import abstract_base
    from crystal_jax.sharding import make_mesh

    where = NamedSharding(make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]), PartitionSpec())
    shapes = abstract_base(config(depth), UNQUANTIZED)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes)
    arrays = jax.tree.leaves(load(base_source(path, config(depth)), like))
    return sum(array.nbytes for array in jax.block_until_ready(arrays))


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="scratch space, 15 GB")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    folder = arguments.folder
    if arguments.step:
        action, kind, write_as, depth = arguments.step
        if action == "make":
            make(kind, int(depth), folder)
        else:
            work(kind, write_as, int(depth), folder)
        return

    def run(*step: str) -> str:
        command = [sys.executable, __file__, f"--folder={folder}", "--step", *step]
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()

    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'from':<12}{'to':<12}{'layers':>7}{'GB':>7}{'peak GB':>9}", flush=True)
    for depth in DEPTHS:
        for kind, targets in ROUTES.items():
            run("make", kind, "", str(depth))
            size = size_of(folder / kind) + (size_of(folder / "hf") if kind in ON_A_BASE else 0)
            for write_as in targets:
                peak = int(run("work", kind, write_as, str(depth)))
                print(f"{kind:<12}{write_as:<12}{depth:>7}{size / 1e9:>7.2f}{peak / 1e9:>9.2f}", flush=True)
                remove(folder / "output")
            if kind not in ("hf", "peft"):
                remove(folder / kind)
            remove(folder / "architecture")
        for kind in ("hf", "peft"):
            remove(folder / kind)


if __name__ == "__main__":
    main()
