"""Hugging Face's LLaMA folders: config.json and safetensors, in one file or in shards with an index."""

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
_CONTEXT = 4096  # tokens, LLaMA-2's; nothing here depends on it


class HfSource:
    """A `LlamaForCausalLM` folder.

    Raises:
        UserError: no such model, an architecture that LLaMA-2's equations do not cover, or damaged files.
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
        """Sees that the stored head of a tied model is the copy that it should be."""
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
        """Of the embedding, and so of all."""
        return self.read_part(_EMBEDDING, slice(0, 1)).dtype

    def read_part(self, name: str, *where: slice) -> np.ndarray:
        """A rectangle of a tensor; the rest of it is not read."""
        return self._shards.read_part(name, *where)


def is_hf(directory: Path) -> bool:
    """Whether a folder looks like a Hugging Face model (a workdir's config.json states no model_type)."""
    path = directory / "config.json"
    return path.is_file() and b'"model_type"' in path.read_bytes()


def read_config(directory: Path) -> LlamaConfig:
    """The architecture that a config.json states, in the keys of transformers 4 or 5.

    Its dtype, which is that of the computation, is float32 if the weights' is, and bfloat16 for either half type.

    Raises:
        UserError: there is none, it is damaged, or the model is not LLaMA-2's architecture.
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
    """Sees that the equations are LLaMA-2's."""
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
    """The type of the weights that a config.json states ("dtype" since transformers 5, before it "torch_dtype")."""
    return config.text("dtype", config.text("torch_dtype", "float32"))


def config_json(cfg: LlamaConfig, dtype: str, special: tuple[int, int] = LLAMA2_SPECIAL) -> dict[str, Any]:
    """What transformers 4 and 5 both read: each has its own keys for the RoPE base and the type.

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
    """Writes a `LlamaForCausalLM` folder, tensor by tensor; config.json comes last, and only then it is a model.

    Args:
        directory: Made if it does not exist.
        source: Where the tensors come from.
        dtype: A key of `DTYPES`.
        special: Ids of BOS and EOS, which config.json states.
        shard_bytes: A file holds no more, unless it be of one tensor.

    Raises:
        UserError: the source lacks or misshapes a tensor.
    """
    check(source.path, source.shapes(), source.config)
    kind = DTYPES[dtype]
    entries = {name: Entry(shape, kind) for name, shape in expected_shapes(source.config).items()}
    write_shards(directory, entries, stream(source, kind), shard_bytes=shard_bytes)
    write_text(directory / "config.json", json.dumps(config_json(source.config, dtype, special), indent=2) + "\n")
