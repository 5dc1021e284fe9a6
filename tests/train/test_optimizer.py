import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.config import OptimizerConfig
from crystal_jax.train.optimizer import ADAM_RMS, learning_rate, make_optimizer

CFG = OptimizerConfig(
    peak_lr=0.1, end_lr=0.01, warmup_steps=10, b1=0.9, b2=0.99, weight_decay=0.5, clip_norm=1.0, accumulate=1
)


def test_learning_rate_rises_to_the_peak_and_falls_as_half_a_cosine():
    schedule = learning_rate(CFG, num_steps=110)
    assert schedule(0) == 0
    assert schedule(5) == pytest.approx(0.05)
    assert schedule(10) == pytest.approx(0.1)
    assert schedule(60) == pytest.approx((0.1 + 0.01) / 2)
    assert schedule(110) == pytest.approx(0.01)


def test_a_run_shorter_than_the_warm_up_still_has_a_schedule():
    assert np.isfinite(float(learning_rate(CFG, num_steps=3)(2)))


def test_only_kernels_are_decayed():
    params = {
        "blocks": {"q": {"kernel": jnp.ones(3)}, "attn_norm": {"scale": jnp.ones(3)}},
        "embedding": jnp.ones(3),
    }
    optimizer = make_optimizer(dataclasses.replace(CFG, warmup_steps=0), num_steps=10)
    zero = {
        "blocks": {"q": {"kernel": jnp.zeros(3)}, "attn_norm": {"scale": jnp.zeros(3)}},
        "embedding": jnp.zeros(3),
    }
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert (updates["blocks"]["q"]["kernel"] < 0).all()
    assert (updates["blocks"]["attn_norm"]["scale"] == 0).all()
    assert (updates["embedding"] == 0).all()


def test_muon_moves_each_layers_kernel_by_a_nearly_orthogonal_matrix():
    rng = np.random.default_rng(0)
    shapes = {"o": (2, 4, 8, 48), "q": (2, 48, 4, 8), "down": (2, 40, 48)}
    params = {"blocks": {name: {"kernel": jnp.zeros(shape)} for name, shape in shapes.items()}}
    params |= {"embedding": jnp.zeros((7, 48))}
    gradients = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    cfg = dataclasses.replace(CFG, name="muon", warmup_steps=0, clip_norm=1e9)
    optimizer = make_optimizer(cfg, num_steps=10)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name, matrix in {"o": (32, 48), "q": (48, 32), "down": (40, 48)}.items():
        for layer in updates["blocks"][name]["kernel"]:
            spectrum = jnp.linalg.svd(layer.reshape(matrix), compute_uv=False)
            # The iteration leaves singular values between 0.7 and 1.2 of the target, which is Adam's update size.
            target = CFG.peak_lr * ADAM_RMS * max(matrix) ** 0.5
            assert 0.5 * target < spectrum.min() < spectrum.max() < 1.5 * target, name
    # Adam's first step has one size for all; Optax gives it Nesterov's look ahead, which makes it larger.
    sizes = abs(updates["embedding"]) / CFG.peak_lr
    assert sizes.min() > 1
    assert sizes.max() < 1.5
    assert np.ptp(sizes) < 1e-3
