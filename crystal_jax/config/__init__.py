"""The typed configuration of a run: frozen dataclasses, built from a ConfigDict in one place.

Files in `configs/` make a `ml_collections.ConfigDict`; the command line changes its leaves; `from_config_dict` turns
it into an `Experiment`, and nothing further inside reads a ConfigDict. Each value is stated once, in the config
file, except where a default below says otherwise. No JAX here.
"""

from crystal_jax.config.experiment import Experiment, from_config_dict, tokenizer_config
from crystal_jax.config.model import (
    PROJECTIONS,
    SPLASH_TOKENS,
    UNQUANTIZED,
    ExecutionConfig,
    Gpt2Config,
    LlamaConfig,
    LoraConfig,
    ModelConfig,
    QuantizationConfig,
    check_length,
    input_axes,
)
from crystal_jax.config.training import (
    EASYLM_AXES,
    LOSSES,
    SAMPLE_RATES,
    DataConfig,
    GuardConfig,
    MeshConfig,
    OptimizerConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "EASYLM_AXES",
    "LOSSES",
    "PROJECTIONS",
    "SAMPLE_RATES",
    "SPLASH_TOKENS",
    "UNQUANTIZED",
    "DataConfig",
    "ExecutionConfig",
    "Experiment",
    "Gpt2Config",
    "GuardConfig",
    "LlamaConfig",
    "LoraConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "QuantizationConfig",
    "TaskConfig",
    "TokenizerConfig",
    "TrainConfig",
    "check_length",
    "from_config_dict",
    "input_axes",
    "tokenizer_config",
]
