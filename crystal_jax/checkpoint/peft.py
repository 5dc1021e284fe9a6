"""LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

PEFT keeps A as [r, inputs] and B as [outputs, r], with heads in Hugging Face's order, which is also this model's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from crystal_jax.checkpoint.layout import leaves_by_path
from crystal_jax.checkpoint.tensors import Shape, Source
from crystal_jax.config import LlamaConfig, LoraConfig
from crystal_jax.errors import UserError
from crystal_jax.files import write_text
from crystal_jax.model.flops import projection_sizes

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight")
# What the reference's adapters hold besides the factors: it resizes the vocabulary after it adds them.
_RESIZED = ("model.embed_tokens.weight", "lm_head.weight")
# Options of PEFT that change what an adapter computes; each must be off.
_UNSUPPORTED = ("use_dora", "alpha_pattern", "rank_pattern", "layers_to_transform", "lora_bias", "fan_in_fan_out")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The factors of a LoRA adapter.

    Attributes:
        path: Where it was read, for messages.
        lora: Rank, α and targets.
        factors: By projection, layer, and "A" [r, inputs] or "B" [outputs, r].
        resized: Embedding and head by Hugging Face's names, where the adapter brings its own.
    """

    path: Path
    lora: LoraConfig
    factors: Mapping[tuple[str, int, str], np.ndarray]
    resized: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def check(self, cfg: LlamaConfig) -> None:
        """Compares the factors with those that a model of this architecture has.

        Raises:
            UserError: one is missing, superfluous, or of another shape.
        """
        expected = {}
        for target in self.lora.targets:
            fan_in, fan_out = projection_sizes(cfg)[target]
            for layer in range(cfg.num_layers):
                expected[target, layer, "A"] = (self.lora.rank, fan_in)
                expected[target, layer, "B"] = (fan_out, self.lora.rank)
        for key in [*expected, *self.factors]:
            found = self.factors[key].shape if key in self.factors else None
            if found != expected.get(key):
                target, layer, factor = key
                name = f"layers.{layer}.{MODULES[target]}.lora_{factor}"
                raise UserError(f"{self.path}: {name} has shape {found}, the base model asks for {expected.get(key)}")

    def arrays(self, cfg: LlamaConfig) -> dict[str, np.ndarray]:
        """The factors as this model's parameters, by path: lora_a [layer, inputs…, r], lora_b [layer, r, outputs…]."""
        arrays: dict[str, np.ndarray] = {}
        for target in self.lora.targets:
            heads = (cfg.num_kv_heads if target in "kv" else cfg.num_heads, cfg.head_dim)
            a, b = (
                np.stack([self.factors[target, layer, factor].T for layer in range(cfg.num_layers)]) for factor in "AB"
            )
            if target == "o":
                a = a.reshape(cfg.num_layers, *heads, -1)
            elif target in "qkv":
                b = b.reshape(cfg.num_layers, -1, *heads)
            arrays |= {f"blocks/{target}/lora_a": a, f"blocks/{target}/lora_b": b}
        return arrays


def adapter_of(params: Any, lora: LoraConfig, path: Path) -> Adapter:
    """The adapter that a run trains; `params` is its trainable state.

    Raises:
        UserError: the run has no adapters.
    """
    if not lora.rank:
        raise UserError(f"{path} trained all parameters: it has no adapter; choose --to=hf")
    factors: dict[tuple[str, int, str], np.ndarray] = {}
    for name, leaf in leaves_by_path(params).items():
        target, factor = name.split("/")[1:]
        for layer, array in enumerate(np.asarray(leaf, np.float32)):
            # [inputs…, r] → [r, inputs], and [r, outputs…] → [outputs, r]
            flat = array.reshape(-1, lora.rank) if factor == "lora_a" else array.reshape(lora.rank, -1)
            factors[target, layer, factor[-1].upper()] = np.ascontiguousarray(flat.T)
    return Adapter(path, lora, factors)


def read_peft(directory: Path) -> Adapter:
    """Reads an adapter's folder.

    Raises:
        UserError: it holds no LoRA adapter, one that computes something else, or a damaged one.
    """
    try:
        stated = json.loads((directory / CONFIG).read_text())
        weights = load_file(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{directory} is no PEFT adapter: {Path(error.filename).name} is missing") from None
    except Exception as error:  # json's and safetensors' errors share no type
        raise UserError(f"{directory} is damaged: {error}") from error
    lora = _lora_config(directory, stated)
    factors, resized = {}, {}
    projections = {module: name for name, module in MODULES.items()}
    for name, tensor in weights.items():
        plain = name.removeprefix(_PREFIX)
        factor = _FACTOR.fullmatch(plain)
        if plain in _RESIZED:
            resized[plain] = tensor
        elif factor and projections.get(factor[2]) in lora.targets:
            factors[projections[factor[2]], int(factor[1]), factor[3]] = tensor
        else:
            raise UserError(f"{directory} has unknown tensor {name}")
    return Adapter(directory, lora, factors, resized)


def write_peft(directory: Path, adapter: Adapter, *, base: str) -> None:
    """Writes an adapter's folder, which `peft.PeftModel.from_pretrained` reads; `base` is what it adapts."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{_PREFIX}model.layers.{layer}.{MODULES[target]}.lora_{factor}.weight": tensor
        for (target, layer, factor), tensor in adapter.factors.items()
    }
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.lora.rank,
        "lora_alpha": adapter.lora.alpha,
        "lora_dropout": adapter.lora.dropout,
        "use_rslora": adapter.lora.rank_stabilized,
        "target_modules": [MODULES[target].split(".")[1] for target in adapter.lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")


class MergedSource:
    """A base model with an adapter merged into it, tensor by tensor: W + α/r · B A."""

    def __init__(self, base: Source, adapter: Adapter):
        adapter.check(base.config)
        self.path = adapter.path
        embedding = adapter.resized.get("model.embed_tokens.weight")
        rows = base.config.vocab_size if embedding is None else len(embedding)
        self.config = dataclasses.replace(base.config, vocab_size=rows)
        self._base, self._adapter = base, adapter

    def shapes(self) -> dict[str, Shape]:
        resized = {name: tensor.shape for name, tensor in self._adapter.resized.items()}
        return {**self._base.shapes(), **resized}

    def read(self, name: str) -> np.ndarray:
        if name in self._adapter.resized:
            return self._adapter.resized[name]
        tensor = self._base.read(name)
        for target, module in MODULES.items():
            if f".{module}." in name and target in self._adapter.lora.targets:
                layer = int(name.split(".")[2])
                a, b = (self._adapter.factors[target, layer, factor].astype(np.float32) for factor in "AB")
                return (tensor.astype(np.float32) + self._adapter.lora.scale * (b @ a)).astype(tensor.dtype)
        return tensor


def _lora_config(directory: Path, stated: Mapping[str, Any]) -> LoraConfig:
    if stated.get("peft_type") != "LORA":
        raise UserError(f"{directory}: peft_type is {stated.get('peft_type')!r}, not 'LORA'")
    for option in _UNSUPPORTED:
        if stated.get(option):
            raise UserError(f"{directory}: the adapter uses PEFT's {option}, which is not implemented")
    short = {module.split(".")[1]: name for name, module in MODULES.items()}
    modules = stated.get("target_modules") or ["q_proj", "v_proj"]  # PEFT's default for LLaMA
    if unknown := [module for module in modules if module not in short]:
        raise UserError(f"{directory}: adapters of {unknown[0]} are unknown; there are: {', '.join(short)}")
    targets = tuple(name for name in MODULES if name in {short[module] for module in modules})
    return LoraConfig(
        rank=stated["r"],
        alpha=float(stated["lora_alpha"]),
        targets=targets,
        dropout=stated.get("lora_dropout", 0.0),
        rank_stabilized=stated.get("use_rslora", False),
    )
