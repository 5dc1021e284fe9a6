"""Reads and writes LoRA adapters in PEFT's format: adapter_config.json and adapter_model.safetensors.

PEFT stores A as [r, inputs] and B as [outputs, r], with heads in Hugging Face's order, which is also this model's.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from crystal_jax.checkpoint.formats.peft_config import EMBEDDING, HEAD, MODULES, Statement, read_statement, to_json
from crystal_jax.checkpoint.formats.safetensors_io import read_tensors
from crystal_jax.checkpoint.layout import leaves_by_path
from crystal_jax.checkpoint.tensors import Shape, Source
from crystal_jax.config import LlamaConfig, LoraConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import describe
from crystal_jax.model.flops import projection_sizes
from crystal_jax.storage.files import write_text

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(model\.layers\.(\d{1,6})\.(\w+\.\w+))\.lora_([AB])\.weight")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """LoRA adapter.

    Attributes:
        path: path of the adapter, for error messages.
        lora: rank, α and targets.
        factors: arrays by projection, layer, and "A" [r, inputs] or "B" [outputs, r].
        whole: embedding and head by Hugging Face's names, if the adapter contains its own: from PEFT's
            `modules_to_save`, or from a vocabulary that was resized after the adapters were added, as in the reference
            implementation.
        keeps_head: whether a tied base keeps its own head: `modules_to_save` copies the embedding and trains only the
            copy.
    """

    path: Path
    lora: LoraConfig
    factors: Mapping[tuple[str, int, str], np.ndarray]
    whole: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    keeps_head: bool = False

    def check(self, cfg: LlamaConfig) -> None:
        """Compares the tensors with those of an adapter for this architecture.

        Raises:
            UserError: a tensor is missing, superfluous, or of another shape.
        """
        for name, tensor in self.whole.items():
            if tensor.ndim != 2 or tensor.shape[1] != cfg.embed_dim:
                raise UserError(
                    f"{self.path}: tensor {name} has shape {tensor.shape}, the base model asks for rows of "
                    f"{cfg.embed_dim}"
                )
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
                if found is None:
                    raise UserError(
                        f"{self.path} lacks {name}; adapters of some layers only are not implemented, and the base "
                        f"has {cfg.num_layers}"
                    )
                raise UserError(f"{self.path}: {name} has shape {found}, the base model asks for {expected.get(key)}")

    def arrays(self, cfg: LlamaConfig) -> dict[str, np.ndarray]:
        """Returns the factors as this model's parameters, by path: lora_a [layer, inputs…, r], lora_b [layer, r,
        outputs…].
        """
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
    """Returns the adapter of a run; `params` is the run's trainable state.

    Raises:
        UserError: the run has no adapter.
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
        UserError: the folder contains no LoRA adapter, an unsupported one, or a damaged one.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            pickled = (directory / "adapter_model.bin").is_file()
            hint = "; adapter_model.bin is a pickle, save the adapter as safetensors" if pickled else ""
            raise UserError(f"{directory} is no PEFT adapter: {name} is missing{hint}")
    stated = read_statement(directory / CONFIG)
    weights = read_tensors(directory / WEIGHTS)
    factors, whole = {}, {}
    projections = {module: name for name, module in MODULES.items()}
    adapted: dict[str, set[int]] = {}
    for name, tensor in weights.items():
        plain = name.removeprefix(_PREFIX)
        factor = _FACTOR.fullmatch(plain)
        if plain in (EMBEDDING, HEAD):
            whole[plain] = tensor
        elif factor and (projection := projections.get(factor[3])):
            if not stated.adapts(factor[1]):
                raise UserError(f"{directory} has tensor {name}, which target_modules in {CONFIG} does not name")
            factors[projection, int(factor[2]), factor[4]] = tensor
            adapted.setdefault(projection, set()).add(int(factor[2]))
        else:
            raise UserError(f"{directory} has unknown tensor {name}")
    _check_complete(directory, stated, adapted)
    if missing := [name for name in stated.saved if name not in whole]:
        raise UserError(f"{directory} lacks tensor {missing[0]}, which modules_to_save in {CONFIG} names")
    lora = stated.lora(tuple(name for name in MODULES if name in adapted))
    return Adapter(directory, lora, factors, whole, keeps_head=EMBEDDING in stated.saved and HEAD not in whole)


def _check_complete(directory: Path, stated: Statement, adapted: Mapping[str, set[int]]) -> None:
    """Checks that the adapter has a tensor for every target module, in each layer that has any.

    Raises:
        UserError: a tensor is missing, or a target is not a projection of a block.
    """
    if not adapted:
        raise UserError(f"{directory} has no LoRA factors of {', '.join(MODULES.values())}")
    for layer in sorted(set().union(*adapted.values())):
        for target, module in MODULES.items():
            name = f"model.layers.{layer}.{module}"
            if stated.adapts(name) and layer not in adapted.get(target, ()):
                raise UserError(f"{directory} lacks the factors of {name}, which target_modules in {CONFIG} names")
    for target in stated.targets if isinstance(stated.targets, tuple) else ():
        if not any(f".{name}".endswith(f".{target}") or target.endswith(name) for name in MODULES.values()):
            raise UserError(
                f"{directory / CONFIG}: adapters of {describe(target)} are unknown; there are: "
                f"{', '.join(module.split('.')[1] for module in MODULES.values())}"
            )


def write_peft(directory: Path, adapter: Adapter, *, base: str) -> None:
    """Writes an adapter's folder, which `peft.PeftModel.from_pretrained` reads; `base` is the adapter's base model."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        f"{_PREFIX}model.layers.{layer}.{MODULES[target]}.lora_{factor}.weight": tensor
        for (target, layer, factor), tensor in adapter.factors.items()
    }
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    config = to_json(adapter.lora, base=base)
    write_text(directory / CONFIG, json.dumps(config, indent=2) + "\n")


class MergedSource:
    """Base model with an adapter merged into it, tensor by tensor: W + α/r · B A.

    If the adapter gives a tied base different head and embedding, the merged model is not tied.
    """

    def __init__(self, base: Source, adapter: Adapter):
        adapter.check(base.config)
        self.path = adapter.path
        self._base, self._adapter = base, adapter
        self._unties = base.config.tie_embeddings and self._has_own_head()
        embedding = adapter.whole.get(EMBEDDING)
        rows = base.config.vocab_size if embedding is None else len(embedding)
        tied = base.config.tie_embeddings and not self._unties
        self.config = dataclasses.replace(base.config, vocab_size=rows, tie_embeddings=tied)

    def _has_own_head(self) -> bool:
        if self._adapter.keeps_head:
            return True
        head, embedding = (self._adapter.whole.get(name) for name in (HEAD, EMBEDDING))
        if head is None:
            return False
        return not np.array_equal(head, self._base.read(EMBEDDING) if embedding is None else embedding)

    def shapes(self) -> dict[str, Shape]:
        shapes = {**self._base.shapes(), **{name: tensor.shape for name, tensor in self._adapter.whole.items()}}
        if self._unties and HEAD not in shapes:
            shapes[HEAD] = self._base.shapes()[EMBEDDING]
        if self.config.tie_embeddings:
            shapes.pop(HEAD, None)
        return shapes

    def read(self, name: str) -> np.ndarray:
        if name in self._adapter.whole:
            return self._adapter.whole[name]
        if name == HEAD and self._unties:
            return self._base.read(EMBEDDING)
        tensor = self._base.read(name)
        for target, module in MODULES.items():
            if f".{module}." in name and target in self._adapter.lora.targets:
                layer = int(name.split(".")[2])
                a, b = (self._adapter.factors[target, layer, factor].astype(np.float32) for factor in "AB")
                return (tensor.astype(np.float32) + self._adapter.lora.scale * (b @ a)).astype(tensor.dtype)
        return tensor
