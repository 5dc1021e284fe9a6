"""Reads and writes Hugging Face LLaMA folders: config.json and safetensors, in one file or in shards with an index."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from crystal_jax.checkpoint.formats.safetensors_io import SHARD_BYTES, Entry, Shards, write_shards
from crystal_jax.checkpoint.tensors import Shape, Source, check, expected_shapes, stream
from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, describe, read_object
from crystal_jax.storage.files import write_text

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ROWS_AT_ONCE = 4096
_BUFFERS = ("rotary_emb.inv_freq",)  # old files store this constant of the architecture
LLAMA2_SPECIAL = (1, 2)  # ids of BOS and EOS
_CONTEXT = 4096  # context length of LLaMA-2 in tokens; nothing here depends on it


class HfSource:
    """`LlamaForCausalLM` folder.

    Raises:
        UserError: the model does not exist, its architecture is not LLaMA-2's, or files are damaged.
    """

    def __init__(self, directory: Path):
        self.path = directory
        self.config = read_config(directory)
        self._shards = Shards(directory, ignored=_BUFFERS)
        self._shapes = self._shards.shapes()
        if self.config.tie_embeddings and _HEAD in self._shapes:
            self._check_copy()
            del self._shapes[_HEAD]

    def _check_copy(self) -> None:
        """Checks that the stored head of a tied model equals the embedding.

        Raises:
            UserError: they differ.
        """
        shape = self._shapes.get(_EMBEDDING, ())
        same = shape == self._shapes[_HEAD]
        for start in range(0, shape[0] if same and shape else 0, _ROWS_AT_ONCE):
            rows = slice(start, min(start + _ROWS_AT_ONCE, shape[0]))
            same = same and np.array_equal(self.read_part(_EMBEDDING, rows), self.read_part(_HEAD, rows))
        if not same:
            raise UserError(
                f"{self.path}: config.json says tie_word_embeddings, but {_HEAD} differs from the embedding; set "
                "tie_word_embeddings to false to use it, or delete the tensor"
            )

    def shapes(self) -> dict[str, Shape]:
        return dict(self._shapes)

    def read(self, name: str) -> np.ndarray:
        return self._shards.read(name)

    @functools.cached_property
    def dtype(self) -> np.dtype:
        """Data type of the embedding, and so of all tensors."""
        return self.read_part(_EMBEDDING, slice(0, 1)).dtype

    def read_part(self, name: str, *where: slice) -> np.ndarray:
        """Reads a rectangle of a tensor, without reading the rest of the tensor."""
        return self._shards.read_part(name, *where)


def is_hf(directory: Path) -> bool:
    """Whether a folder looks like a Hugging Face model (a workdir's config.json has no model_type)."""
    path = directory / "config.json"
    return path.is_file() and b'"model_type"' in path.read_bytes()


def read_config(directory: Path) -> LlamaConfig:
    """Reads the architecture in a config.json, with the keys of transformers 4 or 5.

    The dtype of the result, used for computation, is float32 if the weights are float32, and bfloat16 for both half
    types.

    Raises:
        UserError: the file is missing or damaged, or the architecture is not LLaMA-2's.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is no Hugging Face model: it has no config.json")
    stated = read_object(path)
    if stated.get("model_type") != "llama":
        raise stated.error(f"model_type is {describe(stated.get('model_type'))}; only 'llama' is LLaMA's architecture")
    key = "rope_parameters" if "rope_parameters" in stated else "rope_scaling"
    rope = stated.part(key, {})
    _check_plain(stated, rope)
    heads, width = stated.integer("num_attention_heads", least=1), stated.integer("hidden_size", least=1)
    try:
        return LlamaConfig(
            vocab_size=stated.integer("vocab_size"),
            embed_dim=width,
            mlp_dim=stated.integer("intermediate_size"),
            num_layers=stated.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=stated.integer("num_key_value_heads", heads),
            head_dim=stated.integer("head_dim", width // heads),
            norm_eps=stated.number("rms_norm_eps", above=0.0),
            rope_theta=rope.number("rope_theta", stated.number("rope_theta", 10_000.0, above=0.0), above=0.0),
            tie_embeddings=stated.boolean("tie_word_embeddings", False),
            dtype="float32" if stated_dtype(stated) == "float32" else "bfloat16",
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _check_plain(stated: JsonObject, rope: JsonObject) -> None:
    """Checks that the equations are LLaMA-2's.

    Raises:
        UserError: an option is not LLaMA-2's.
    """
    if "quantization_config" in stated:
        raise stated.error("quantization_config: the weights are quantised, which is not read; take the original model")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    for key, value, plain in (
        ("hidden_act", stated.get("hidden_act", "silu"), "silu"),
        ("attention_bias", stated.get("attention_bias") or False, False),
        ("mlp_bias", stated.get("mlp_bias") or False, False),
        ("rope_type", kind, "default"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", stated.get("partial_rotary_factor")) or 1, 1),
    ):
        if value != plain:
            raise stated.error(
                f"{key} is {describe(value)}; LLaMA-2's is {describe(plain)}, and nothing else is implemented"
            )


def stated_dtype(config: JsonObject) -> str:
    """Returns the weights' type in a config.json ("dtype" since transformers 5, "torch_dtype" before)."""
    return config.text("dtype", config.text("torch_dtype", "float32"))


def config_json(cfg: LlamaConfig, dtype: str, special: tuple[int, int] = LLAMA2_SPECIAL) -> dict[str, Any]:
    """Returns a config.json for transformers 4 and 5, which have different keys for the RoPE base and the type.

    `special` are the ids of BOS and EOS.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab_size,
        "hidden_size": cfg.embed_dim,
        "intermediate_size": cfg.mlp_dim,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.num_heads,
        "num_key_value_heads": cfg.num_kv_heads,
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "max_position_embeddings": _CONTEXT,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "tie_word_embeddings": cfg.tie_embeddings,
        "bos_token_id": special[0],
        "eos_token_id": special[1],
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def write_hf(
    directory: Path,
    source: Source,
    *,
    dtype: str,
    special: tuple[int, int] = LLAMA2_SPECIAL,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a `LlamaForCausalLM` folder, tensor by tensor. config.json is written last and marks the folder as
    complete.

    Args:
        directory: output folder; created if it does not exist.
        source: source of the tensors.
        dtype: a key of `DTYPES`.
        special: ids of BOS and EOS, for config.json.
        shard_bytes: largest size of a file, unless it contains a single tensor.

    Raises:
        UserError: the source lacks a tensor or has one of another shape.
    """
    check(source.path, source.shapes(), source.config)
    kind = DTYPES[dtype]
    entries = {name: Entry(shape, kind) for name, shape in expected_shapes(source.config).items()}
    write_shards(directory, entries, stream(source, kind), shard_bytes=shard_bytes)
    write_text(directory / "config.json", json.dumps(config_json(source.config, dtype, special), indent=2) + "\n")
