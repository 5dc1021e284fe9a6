"""Logits equal those of Hugging Face's `GPT2LMHeadModel`, and would not if any field of the config were wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("transformers")
import torch
import transformers

from crystal_jax.checkpoint.layout import path_of
from crystal_jax.config import Gpt2Config
from crystal_jax.model.architectures import make_model
from crystal_jax.model.attention.kv_cache import empty_cache
from crystal_jax.sharding import LAYOUTS
from tests.experiments import NO_LORA, SCANNED, TINY_GPT2, UNROLLED, extend, logits
from tests.parity.models import WEIGHT_SCALE, logits_of

IDS = np.random.default_rng(0).integers(0, TINY_GPT2.vocab_size, (2, 33))
ATOL = 1e-4


def hugging_face(cfg: Gpt2Config = TINY_GPT2):
    """A float32 `GPT2LMHeadModel` with random weights and biases of standard deviation 0.3, norms around 1."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=cfg.vocab_size,
            n_embd=cfg.embed_dim,
            n_inner=cfg.mlp_dim,
            n_layer=cfg.num_layers,
            n_head=cfg.num_heads,
            n_positions=cfg.num_positions,
            layer_norm_epsilon=cfg.norm_eps,
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = WEIGHT_SCALE * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if "ln_" in name and name.endswith("weight") else noise)
    return model.eval()


def tensor_of(model, path: str) -> np.ndarray:
    """The weights of Hugging Face's model at a path of ours: its kernels are [inputs, outputs], q, k and v in one."""
    tensors = {name.removeprefix("transformer."): value.numpy() for name, value in model.state_dict().items()}
    whole = {
        "embedding": "wte.weight",
        "position_embedding": "wpe.weight",
        "final_norm/scale": "ln_f.weight",
        "final_norm/bias": "ln_f.bias",
    }
    if path in whole:
        return tensors[whole[path]]
    _, part, kind = path.split("/")
    suffix = "bias" if kind == "bias" else "weight"
    module = {"attn_norm": "ln_1", "mlp_norm": "ln_2", "o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
    name = module.get(part, "attn.c_attn")
    stacked = np.stack([tensors[f"h.{i}.{name}.{suffix}"] for i in range(model.config.n_layer)])
    return np.split(stacked, 3, axis=-1)["qkv".index(part)] if part in ("q", "k", "v") else stacked


def converted(model, cfg: Gpt2Config = TINY_GPT2, execution=UNROLLED):
    """Hugging Face's weights in a model of this configuration.

    Raises:
        ValueError: an array has another size than the configuration says.
    """
    graph, state = nnx.split(nnx.eval_shape(lambda: make_model(cfg, NO_LORA, execution, rngs=nnx.Rngs(0))))

    def place(key_path, leaf):
        array = tensor_of(model, path_of(key_path))
        if array.size != np.prod(leaf.shape):
            raise ValueError(f"{path_of(key_path)} is {array.shape}, not {leaf.shape}")
        return jnp.asarray(array.reshape(leaf.shape), leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(place, state))


@pytest.fixture(scope="module")
def reference():
    model = hugging_face()
    return model, logits_of(model, IDS)


@pytest.mark.parametrize("execution", [UNROLLED, SCANNED], ids=["unrolled", "scanned"])
def test_logits_equal_hugging_face(reference, execution):
    model, expected = reference
    np.testing.assert_allclose(logits(converted(model, execution=execution), jnp.asarray(IDS)), expected, atol=ATOL)


@pytest.mark.parametrize(
    "changes", [{"num_heads": 1}, {"num_layers": 1}, {"norm_eps": 1e-5}, {"mlp_dim": 192}], ids=str
)
def test_other_sizes(changes):
    cfg = dataclasses.replace(TINY_GPT2, **changes)
    model = hugging_face(cfg)
    np.testing.assert_allclose(logits(converted(model, cfg), jnp.asarray(IDS)), logits_of(model, IDS), atol=ATOL)


# One wrong value for each field. Those of the second group change no size of the stored tensors.
MISSHAPEN = dict(vocab_size=96, embed_dim=54, mlp_dim=81, num_layers=2, num_positions=39)
UNNOTICED_BY_SHAPES = dict(num_heads=3, norm_eps=4e-3, dtype="bfloat16")


def test_every_field_is_falsified_below():
    fields = {f.name for f in dataclasses.fields(Gpt2Config)}
    assert MISSHAPEN.keys() | UNNOTICED_BY_SHAPES.keys() | {"architecture"} == fields
    with pytest.raises(ValueError, match="in fields of gpt2's"):
        dataclasses.replace(TINY_GPT2, architecture="llama")


@pytest.mark.parametrize("field", MISSHAPEN)
def test_a_field_that_contradicts_the_tensors_is_noticed(reference, field):
    with pytest.raises(ValueError, match=" is "):
        converted(reference[0], dataclasses.replace(TINY_GPT2, **{field: MISSHAPEN[field]}))


@pytest.mark.parametrize("field", UNNOTICED_BY_SHAPES)
def test_a_wrong_field_makes_parity_fail(reference, field):
    model, expected = reference
    cfg = dataclasses.replace(TINY_GPT2, **{field: UNNOTICED_BY_SHAPES[field]})
    assert abs(logits(converted(model, cfg), jnp.asarray(IDS)) - expected).max() > 100 * ATOL


@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_cached_decoding_equals_hugging_face(reference, layout):
    reference_model, expected = reference
    model = converted(reference_model)
    cache = empty_cache(model.cfg, batch=2, capacity=IDS.shape[1], layout=layout)
    found = []
    for start, stop in ((0, 20), (20, 21), (21, 33)):
        part, cache = extend(model, jnp.asarray(IDS[:, start:stop]), jnp.full(2, stop - start), cache)
        found.append(part)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=ATOL)
