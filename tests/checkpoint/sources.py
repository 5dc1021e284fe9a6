"""Checkpoints without a file, and the view of one that does not go through the code under test."""

import re
import shutil
import zlib
from pathlib import Path

import flax.serialization
import msgpack
import numpy as np

from crystal_jax.checkpoint.tensors import check, expected_shapes
from crystal_jax.config import LlamaConfig

_ENDS = {"transformer/wte/embedding": "tok_embeddings", "transformer/ln_f/kernel": "norm", "lm_head/kernel": "output"}


class RandomSource:
    """Normal numbers that depend on the tensor's name only."""

    path = "random numbers"

    def __init__(self, config: LlamaConfig, dtype: np.dtype = np.dtype(np.float32)):  # noqa: B008
        self.config, self.dtype = config, dtype

    def shapes(self):
        return expected_shapes(self.config)

    def read(self, name):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.standard_normal(self.shapes()[name]).astype(self.dtype)


def records(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an EasyLM file, decoded by Flax, which EasyLM uses."""
    with path.open("rb") as file:
        stream = msgpack.Unpacker(file, max_buffer_size=0)
        return {"/".join(key): flax.serialization.msgpack_restore(blob) for key, blob in stream}


def metas_tensors(easylm: Path) -> dict[str, np.ndarray]:
    """The arrays of an EasyLM file under Meta's names and axes; the order of rows is the same."""
    tensors = {}
    for key, array in records(easylm).items():
        block = re.fullmatch(r"transformer/h/(\d+)/(.+)/kernel", key)
        name = f"layers.{block[1]}.{block[2].replace('/', '.')}" if block else _ENDS[key]
        tensors[f"{name}.weight"] = array if key.endswith("embedding") else array.T
    return tensors


def assert_same(ours, theirs) -> None:
    """Two sources hold the same tensors, to the bit, and the first holds nothing else."""
    check(ours.path, ours.shapes(), ours.config)
    for name in expected_shapes(ours.config):
        source = "model.embed_tokens.weight" if name not in theirs.shapes() else name
        a, b = ours.read(name), theirs.read(source)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        assert a.tobytes() == b.tobytes(), name


def writable_copy(folder, copy):
    """Copies a folder of files, which may be read-only, to be changed; returns the copy."""
    shutil.copytree(folder, copy)
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    return copy
