"""Hugging Face models with weights large enough that no term of the architecture can hide, and the same here."""

import dataclasses

import jax
import torch
import transformers
from flax import nnx

from crystal_jax.checkpoint.hf import HfSource
from crystal_jax.checkpoint.layout import load
from crystal_jax.checkpoint.vocabulary import GrownSource
from crystal_jax.config import ExecutionConfig, LoraConfig, MeshConfig
from crystal_jax.model.llama import Llama
from crystal_jax.sharding import make_mesh, tree_shardings
from tests.experiments import NO_LORA, UNROLLED

WEIGHT_SCALE = 0.3
BASE = dict(
    vocab_size=98,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=3e-3,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    tie_word_embeddings=False,
    max_position_embeddings=64,
)


def hugging_face(**changes):
    """A float32 `LlamaForCausalLM` with random weights of standard deviation 0.3, norms around 1."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**BASE, **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = WEIGHT_SCALE * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if "norm" in name else noise)
    return model.eval()


def ours(
    folder, *, lora: LoraConfig = NO_LORA, execution: ExecutionConfig = UNROLLED, mesh=None, rows=None, **fields
) -> Llama:
    """The checkpoint in `folder` as this project's model, on a mesh; `fields` falsify its architecture, and
    `rows` enlarges its vocabulary."""
    source = HfSource(folder)
    source.config = cfg = dataclasses.replace(source.config, **fields)
    if rows:
        source, cfg = GrownSource(source, rows), dataclasses.replace(cfg, vocab_size=rows)
    graph, state = nnx.split(nnx.eval_shape(lambda: Llama(cfg, lora, execution, rngs=nnx.Rngs(0))))
    mesh = mesh or make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    where = tree_shardings(state, mesh)
    like = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), state, where)
    return nnx.merge(graph, load(source, like))


def logits_of(model, ids):
    """Hugging Face's logits as NumPy."""
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.numpy()
