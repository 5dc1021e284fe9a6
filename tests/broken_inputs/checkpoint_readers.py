"""Damaged checkpoints, of every format that `convert` reads."""

import json
import math

import numpy as np
import pytest

from crystal_jax.checkpoint.formats.easylm import EasyLmSource, write_easylm
from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.formats.llama2c import Llama2cSource
from crystal_jax.checkpoint.formats.peft import Adapter, MergedSource, read_peft, write_peft
from crystal_jax.checkpoint.tensors import check, expected_shapes, stream
from crystal_jax.checkpoint.workdir import claim as claim_workdir
from crystal_jax.checkpoint.workdir import read_experiment
from crystal_jax.config import LoraConfig, from_config_dict
from crystal_jax.model.flops import projection_sizes
from tests.broken_inputs.damage import Reader
from tests.broken_inputs.valid_folders import hf_folder
from tests.checkpoint.sources import RandomSource
from tests.experiments import TINY, training_config

LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "v"))


def read_hf(folder):
    source = HfSource(folder)
    check(folder, source.shapes(), source.config)


def peft_folder(folder):
    rng = np.random.default_rng(0)
    factors = {}
    for target in LORA.targets:
        fan_in, fan_out = projection_sizes(TINY)[target]
        for layer in range(TINY.num_layers):
            factors[target, layer, "A"] = rng.standard_normal((LORA.rank, fan_in)).astype(np.float32)
            factors[target, layer, "B"] = rng.standard_normal((fan_out, LORA.rank)).astype(np.float32)
    write_peft(folder, Adapter(folder, LORA, factors), base="base")


def read_adapter(folder):
    MergedSource(RandomSource(TINY), read_peft(folder))


def meta_folder(folder):
    torch = pytest.importorskip("torch")
    from tests.checkpoint.sources import metas_tensors

    folder.mkdir()
    write_easylm(folder / "easylm", RandomSource(TINY))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in metas_tensors(folder / "easylm").items()}
    torch.save(tensors, folder / "consolidated.00.pth")
    params = {"dim": TINY.embed_dim, "n_layers": TINY.num_layers, "n_heads": TINY.num_heads, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params | {"n_kv_heads": TINY.num_kv_heads, "norm_eps": 1e-5}))


def read_meta(folder):
    from crystal_jax.checkpoint.formats.meta import MetaSource

    source = MetaSource(folder)
    check(folder, source.shapes(), source.config)


def gguf_folder(folder):
    pytest.importorskip("gguf")
    from tests.checkpoint.formats.gguf_files import WIDE, tensors_of, write_gguf

    folder.mkdir()
    write_easylm(folder / "easylm", RandomSource(WIDE))
    write_gguf(folder / "model.gguf", WIDE, tensors_of(folder / "easylm"))


def read_gguf(folder):
    from crystal_jax.checkpoint.formats.gguf import GgufSource

    source = GgufSource(folder / "model.gguf")
    check(folder, source.shapes(), source.config)


def easylm_folder(folder):
    folder.mkdir()
    write_easylm(folder / "easylm", RandomSource(TINY))


def read_easylm(folder):
    for _ in stream(EasyLmSource(folder / "easylm", TINY)):
        pass


def llama2c_folder(folder):
    folder.mkdir()
    rotary = 8 * TINY.embed_dim // TINY.num_heads  # for a sequence of eight tokens
    header = [TINY.embed_dim, TINY.mlp_dim, TINY.num_layers, TINY.num_heads, TINY.num_kv_heads, -TINY.vocab_size, 8]
    weights = sum(math.prod(shape) for shape in expected_shapes(TINY).values())
    (folder / "model.bin").write_bytes(np.array(header, "<i4").tobytes() + bytes(4 * (weights + rotary)))


def workdir_folder(folder):
    claim_workdir(folder, from_config_dict(training_config("data"), vocab_size=98))


JSON_READERS = {
    "config.json": Reader(hf_folder, "config.json", read_hf),
    "index": Reader(hf_folder, "model.safetensors.index.json", read_hf),
    "adapter_config.json": Reader(peft_folder, "adapter_config.json", read_adapter),
    "params.json": Reader(meta_folder, "params.json", read_meta),
    "workdir": Reader(workdir_folder, "config.json", read_experiment),
}
READERS = {
    **JSON_READERS,
    "safetensors": Reader(hf_folder, "model-00001-of-00006.safetensors", read_hf),
    "adapter": Reader(peft_folder, "adapter_model.safetensors", read_adapter),
    "consolidated": Reader(meta_folder, "consolidated.00.pth", read_meta),
    "gguf": Reader(gguf_folder, "model.gguf", read_gguf),
    "easylm": Reader(easylm_folder, "easylm", read_easylm),
    "llama2c": Reader(llama2c_folder, "model.bin", lambda folder: Llama2cSource(folder / "model.bin")),
}
