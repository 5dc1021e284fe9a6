"""Reads and writes a PEFT adapter's adapter_config.json, for plain LoRA on the projections of the blocks.

PEFT has many options that change what an adapter computes. Few of them are supported. Options that only describe the
adapter are ignored. All other options must be off: an option unknown to this module is rejected by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crystal_jax.config import LoraConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, describe, read_object

MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_SAVED = {"embed_tokens": EMBEDDING, "model.embed_tokens": EMBEDDING, "lm_head": HEAD}
_READ = (
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "target_modules",
    "modules_to_save",
    "init_lora_weights",
    "bias",
)
# These only describe the adapter, or belong to an option that is itself rejected.
_PASSED_OVER = (
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
)
# Initialisations that do not change the base. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change it.
_INITIALISATIONS = ("gaussian", "eva", "orthogonal")
_DEFAULT_TARGETS = ["q_proj", "v_proj"]  # PEFT's default for LLaMA


@dataclasses.dataclass(frozen=True)
class Statement:
    """Content of an adapter_config.json.

    Attributes:
        path: the file, for error messages.
        rank, alpha, dropout, rank_stabilized: as in `LoraConfig`.
        targets: names of modules or their suffixes; a regular expression for full names; or "all-linear".
        saved: the tensors that the adapter stores in full, from `modules_to_save`.
    """

    path: Path
    rank: int
    alpha: float
    dropout: float
    rank_stabilized: bool
    targets: tuple[str, ...] | str
    saved: tuple[str, ...]

    def lora(self, targets: tuple[str, ...]) -> LoraConfig:
        """Returns the configuration of an adapter of these projections.

        Raises:
            UserError: a value is not allowed.
        """
        try:
            return LoraConfig(
                rank=self.rank,
                alpha=self.alpha,
                targets=targets,
                dropout=self.dropout,
                rank_stabilized=self.rank_stabilized,
            )
        except ValueError as error:
            raise UserError(f"{self.path}: {error}") from error

    def adapts(self, module: str) -> bool:
        """Whether the targets include a module of the base, such as `model.layers.0.self_attn.q_proj`."""
        if self.targets == "all-linear":
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == target or module.endswith(f".{target}") for target in self.targets)


def read_statement(path: Path) -> Statement:
    """Reads an adapter_config.json.

    Raises:
        UserError: the file is missing or damaged, or has an option that changes what the adapter computes.
    """
    stated = read_object(path)
    if stated.get("peft_type") != "LORA":
        raise stated.error(f"peft_type is {describe(stated.get('peft_type'))}, not 'LORA'")
    initialisation = stated.get("init_lora_weights", True)
    if not isinstance(initialisation, bool) and initialisation not in (None, *_INITIALISATIONS):
        raise stated.error(
            f"init_lora_weights is {describe(initialisation)}: the adapter belongs to a changed base and cannot be "
            "added to the original one; save it with PEFT's path_initial_model_for_weight_conversion, which makes it "
            "plain LoRA"
        )
    if stated.get("bias", "none") not in (None, "none"):
        raise stated.error(f"bias is {describe(stated.get('bias'))}; only 'none' is implemented")
    for option, value in stated.content.items():
        if option not in (*_READ, *_PASSED_OVER) and value not in (None, False, {}, []):
            raise stated.error(f"the adapter uses PEFT's {option} ({describe(value)}), which is not implemented")
    return Statement(
        path,
        rank=stated.integer("r", least=1),
        alpha=stated.number("lora_alpha"),
        dropout=stated.number("lora_dropout", 0.0),
        rank_stabilized=stated.boolean("use_rslora", False),
        targets=_targets(stated),
        saved=_saved(stated),
    )


def _targets(stated: JsonObject) -> tuple[str, ...] | str:
    value = stated.get("target_modules")
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise stated.error(f"target_modules is no regular expression: {describe(value)} ({error})") from None
        return value
    return _names(stated, "target_modules", _DEFAULT_TARGETS)


def _saved(stated: JsonObject) -> tuple[str, ...]:
    names = _names(stated, "modules_to_save", [])
    if unknown := [name for name in names if name not in _SAVED]:
        raise stated.error(f"modules_to_save has {describe(unknown[0])}; only embed_tokens and lm_head are implemented")
    return tuple(_SAVED[name] for name in names)


def _names(stated: JsonObject, key: str, default: list[str]) -> tuple[str, ...]:
    names = stated.items(key, default)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise stated.error(f"{key} has {describe(wrong[0])}, which is no name of a module")
    return tuple(names)


def to_json(lora: LoraConfig, *, base: str) -> Mapping[str, Any]:
    """Returns the content of adapter_config.json for an adapter of this kind; `base` is the name of its base model."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilized,
        "target_modules": [MODULES[target].split(".")[1] for target in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
