"""Shipped configurations, made small enough to compile."""

from crystal_jax.config import Experiment, from_config_dict
from tests.experiments import CONFIGS, load_config


def llama2(size: str = "7b", variant: str = "tpu", *, layers: int, **sections) -> Experiment:
    """A LLaMA-2, cut to some layers, with values of its sections changed."""
    (path,) = (path for path in CONFIGS if path.stem == f"llama2_{size}")
    config = load_config(path).get_config(variant).to_dict()
    for section, values in sections.items():
        config[section] = {**config[section], **values}
    config["model"]["num_layers"] = layers
    return from_config_dict(config, vocab_size=0)
