"""GGUF files as the `gguf` package writes them."""

import dataclasses

import numpy as np
import pytest

from tests.checkpoint.sources import metas_tensors
from tests.experiments import TINY

gguf = pytest.importorskip("gguf")

NAMES = {
    **{"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output", "attention_norm": "attn_norm"},
    **{"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output"},
    **{"ffn_norm": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"},
}
# Blocks of quantised rows have 32 numbers.
WIDE = dataclasses.replace(TINY, embed_dim=96, mlp_dim=160, num_layers=2, head_dim=16)


def tensors_of(easylm):
    """An EasyLM file's arrays under llama.cpp's names; axes and rows are Meta's in both."""
    tensors = {}
    for name, array in metas_tensors(easylm).items():
        *block, kind, _ = name.split(".")
        prefix = f"blk.{block[1]}." if block else ""
        tensors[f"{prefix}{NAMES[kind]}.weight"] = np.ascontiguousarray(array)
    return tensors


def write_gguf(path, cfg, tensors, kind="F32", architecture="llama", vocabulary=None, **metadata):
    """Matrices are stored as `kind`, norms as float32. Metadata that is None is left out; `vocabulary(writer)` may add
    more."""
    writer = gguf.GGUFWriter(path, architecture)
    stated = {
        "embedding_length": cfg.embed_dim,
        "feed_forward_length": cfg.mlp_dim,
        "block_count": cfg.num_layers,
        "attention.head_count": cfg.num_heads,
        "attention.head_count_kv": cfg.num_kv_heads,
        "attention.layer_norm_rms_epsilon": cfg.norm_eps,
        "rope.freq_base": cfg.rope_theta,
        "rope.dimension_count": cfg.head_dim,
    }
    for key, value in (stated | {key.replace("__", "."): value for key, value in metadata.items()}).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}.get(type(value))
        if add:
            add(f"llama.{key}", value)
    if vocabulary:
        vocabulary(writer)
    for name, array in tensors.items():
        stored = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
