"""Hugging Face models with weights large enough that no term of the architecture can hide."""

import copy

import torch
import transformers

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


def logits_of(model, ids):
    """Hugging Face's logits as NumPy, computed in float64: on a busy machine its own rounding in float32 varies."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(torch.tensor(ids)).logits.numpy()
