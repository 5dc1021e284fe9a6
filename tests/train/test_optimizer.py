import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from crystal_jax.config import OptimizerConfig
from crystal_jax.train.optimizer import learning_rate, make_optimizer

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
