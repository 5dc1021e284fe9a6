"""Every file in configs/ builds, and opens with its result, its cost and its command."""

from pathlib import Path

import pytest

from crystal_jax.config import from_config_dict
from crystal_jax.demo import demo_config
from crystal_jax.text.tokenizer import load_tokenizer
from tests.experiments import CONFIGS, load_config


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_builds_and_says_what_to_expect(path):
    module = load_config(path)
    for word in ("Result:", "Cost:", "Command:"):
        assert word in module.__doc__
    for variant in module.VARIANTS:
        config = module.get_config(variant).to_dict()
        experiment = from_config_dict(config, vocab_size=1000)
        assert experiment.train.num_steps > 0
    with pytest.raises(ValueError, match="Unknown variant"):
        module.get_config("nonsense")


def test_the_demo_config_builds():
    config = demo_config(Path("data"), num_steps=3)
    tokenizer = load_tokenizer(config["tokenizer"]["name"])
    assert from_config_dict(config, vocab_size=tokenizer.vocab_size).model.vocab_size == tokenizer.vocab_size
