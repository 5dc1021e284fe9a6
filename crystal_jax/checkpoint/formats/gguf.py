"""Reads GGUF files of LLaMA models (llama.cpp's format), dequantised tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crystal_jax.checkpoint.tensors import Shape, heads_of, permute
from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, describe

_NAMES: Mapping[str, str] = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK: Mapping[str, str] = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_norm": "post_attention_layernorm",
}
# Options that change what a model computes, and their values when they are off.
_PLAIN: Mapping[str, Any] = {
    "llama.rope.scaling.type": "none",
    "llama.rope.scale_linear": 1.0,
    "llama.rope.scaling.attn_factor": 1.0,
    "llama.expert_count": 0,
    "llama.attention.clamp_kqv": 0.0,
    "llama.attention.max_alibi_bias": 0.0,
    "llama.attention.scale": 0.0,
    "llama.attention.sliding_window": 0,
    "llama.attention.causal": True,
    "llama.use_parallel_residual": False,
    "llama.logit_scale": 1.0,
    "llama.residual_scale": 1.0,
    "llama.embedding_scale": 1.0,
    "llama.attn_logit_softcapping": 0.0,
    "llama.final_logit_softcapping": 0.0,
}
# Keys that are read, or have no effect if the scaling is off.
_ROPE = (
    "llama.rope.freq_base",
    "llama.rope.scaling.factor",
    "llama.rope.scaling.original_context_length",
    "llama.rope.scaling.finetuned",
)


class GgufSource:
    """GGUF file of architecture `llama`; needs the package `gguf`.

    Rows of q and k are in Meta's order, because llama.cpp's converter reorders Hugging Face's. The embedding is tied if
    there is no `output.weight`. Tensors are read as float32, independent of their stored type.

    Raises:
        UserError: the package is missing; the file is missing, damaged, or of another architecture.
    """

    def __init__(self, path: Path):
        self.path = path
        reader = _open(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        try:
            self.config = _config(path, reader, self._tensors)
        except (UnicodeDecodeError, LookupError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        self._names = dict(_NAMES)
        for i in range(self.config.num_layers):
            self._names |= {f"blk.{i}.{gg}.weight": f"model.layers.{i}.{hf}.weight" for gg, hf in _BLOCK.items()}
        self._keys = {hf: gg for gg, hf in self._names.items()}

    def shapes(self) -> dict[str, Shape]:
        return {self._names.get(key, key): _shape(tensor) for key, tensor in self._tensors.items()}

    def metadata(self) -> dict[str, Any]:
        """Returns all metadata of the file, such as its tokenizer."""
        try:
            return {key: field.contents() for key, field in _open(self.path).fields.items()}
        except (ValueError, LookupError) as error:
            raise UserError(f"{self.path} is damaged: {error}") from error

    def read(self, name: str) -> np.ndarray:
        from gguf import dequantize

        stored = self._tensors[self._keys[name]]
        # Not through the reader's memory map, whose pages would stay in memory.
        data = np.fromfile(self.path, stored.data.dtype, stored.data.size, offset=stored.data_offset)
        try:
            tensor = np.array(dequantize(data.reshape(stored.data.shape), stored.tensor_type), dtype=np.float32)
        except NotImplementedError:
            raise UserError(f"{self.path}: {stored.name} has type {stored.tensor_type.name}, unknown to gguf") from None
        heads = heads_of(name, self.config)
        return permute(tensor, heads) if heads else tensor


def _open(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError('reading GGUF files needs the package gguf: pip install "crystal-jax[gguf]"') from None
    try:
        reader = GGUFReader(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # the reader follows offsets in the file, and raises many types of errors
        raise UserError(f"{path} is no GGUF file, or damaged: {' '.join(str(error).split())}") from error
    if reader.byte_order != "I":
        raise UserError(f"{path} is big-endian; convert it with gguf's gguf-convert-endian")
    return reader


def _shape(tensor: Any) -> Shape:
    """Returns the shape of a tensor; GGUF states the fastest axis first."""
    return tuple(int(size) for size in tensor.shape[::-1])


def _stated(path: Path, reader: Any) -> JsonObject:
    """Returns the metadata that define the architecture as plain values; a list of equal numbers is replaced by the
    number.

    llama.cpp writes such a list if each layer has its own value.
    """
    stated: dict[str, Any] = {}
    for key, field in reader.fields.items():
        if key.startswith(("general.architecture", "llama.", "split.")):
            value = field.contents()
            same = isinstance(value, list) and value and all(each == value[0] for each in value)
            stated[key] = value[0] if same else value
    return JsonObject(stated, path)


def _check_plain(stated: JsonObject, head_dim: int) -> None:
    """Checks that the equations are LLaMA's: other options are absent or off.

    Raises:
        UserError: an option is on, or unknown.
    """
    plain = {"llama.rope.dimension_count": head_dim, "llama.attention.value_length": head_dim, **_PLAIN}
    for key in stated:
        if key in plain and stated.get(key) not in (plain[key], None):
            raise stated.error(f"{key} is {describe(stated.get(key))}; only {describe(plain[key])} is implemented")
        if key.startswith("llama.rope.") and key not in (*plain, *_ROPE):
            raise stated.error(f"{key} is unknown; only LLaMA's rotary embedding is implemented")


def _config(path: Path, reader: Any, tensors: Mapping[str, Any]) -> LlamaConfig:
    stated = _stated(path, reader)
    if (parts := stated.integer("split.count", 1)) > 1:
        part = stated.integer("split.no", 0) + 1
        raise UserError(
            f"{path} is part {part} of {parts}: merge with llama-gguf-split --merge FIRST_PART MERGED, and give MERGED"
        )
    if (architecture := stated.text("general.architecture")) != "llama":
        raise stated.error(f"architecture is {architecture!r}; only 'llama' is LLaMA's")
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path} lacks tensor token_embd.weight")
    embedding = tensors["token_embd.weight"]
    width, heads = stated.integer("llama.embedding_length"), stated.integer("llama.attention.head_count", least=1)
    head_dim = stated.integer("llama.attention.key_length", width // heads)
    _check_plain(stated, head_dim)
    if (blocks := stated.integer("llama.block_count")) > len(tensors):  # checked before billions of names are generated
        raise stated.error(f"llama.block_count is {blocks}, but there are {len(tensors)} tensors")
    try:
        return LlamaConfig(
            vocab_size=_shape(embedding)[0],
            embed_dim=width,
            mlp_dim=stated.integer("llama.feed_forward_length"),
            num_layers=blocks,
            num_heads=heads,
            num_kv_heads=stated.integer("llama.attention.head_count_kv", heads),
            head_dim=head_dim,
            norm_eps=_decimal(stated.number("llama.attention.layer_norm_rms_epsilon", above=0.0)),
            rope_theta=_decimal(stated.number("llama.rope.freq_base", 10_000.0, above=0.0)),
            tie_embeddings="output.weight" not in tensors,
            dtype="float32" if embedding.tensor_type.name == "F32" else "bfloat16",
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _decimal(single: float) -> float:
    """Returns the intended decimal number: GGUF stores 1e-5 as a float32, which is 9.999999747378752e-06."""
    return float(str(np.float32(single)))
