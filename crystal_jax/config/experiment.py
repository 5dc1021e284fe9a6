"""A whole experiment, built from a ConfigDict in one place."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from crystal_jax.config.check import build, require
from crystal_jax.config.model import (
    SPLASH_TOKENS,
    UNQUANTIZED,
    ExecutionConfig,
    LoraConfig,
    ModelConfig,
    QuantizationConfig,
    model_config,
)
from crystal_jax.config.training import (
    DEFAULT_GUARD,
    DataConfig,
    GuardConfig,
    MeshConfig,
    OptimizerConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from crystal_jax.errors import UserError
from crystal_jax.old_names import present_keys
from crystal_jax.text.crystal_text import TextFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides a training run.

    `base` is the model that training begins with, under adapters or as a whole: a workdir, a Hugging Face folder, or
    the name of a released model; "" is none.
    """

    model: ModelConfig
    lora: LoraConfig
    execution: ExecutionConfig
    text: TextFormat
    tokenizer: TokenizerConfig
    task: TaskConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    base: str = ""
    quantize: QuantizationConfig = UNQUANTIZED
    guard: GuardConfig = DEFAULT_GUARD

    def __post_init__(self):
        require(
            self.quantize.kind == "none" or self.lora.rank > 0,
            f"quantize.kind={self.quantize.kind!r} needs a frozen base, and with lora.rank=0 every weight is trained",
        )
        require(
            not self.train.token_features
            or (self.tokenizer.name == "atom_coordinate" and not self.lora.rank and not self.base),
            "train.token_features needs tokenizer.name='atom_coordinate', whose tokens are whole numbers and elements, "
            "lora.rank=0, which trains the embedding, and no base, which would bring one",
        )
        lists_sites = self.text.version not in ("cif", "wyckoff")
        spellable = lists_sites and self.text.decimals == 2 and self.text.coordinates == "fractional"
        require(
            spellable or self.tokenizer.name not in ("atom_coordinate", "llama2_crystal"),
            f"tokenizer.name={self.tokenizer.name!r} has tokens for fractional coordinates of two decimals only; other "
            "texts (text.version='cif' or 'wyckoff', text.decimals, text.coordinates='cartesian') need 'character', "
            "'llama2' or 'huggingface'; 'wyckoff' has a tokenizer of that name",
        )
        require(
            self.tokenizer.name != "wyckoff" or (self.text.version == "wyckoff" and self.text.decimals == 2),
            "tokenizer.name='wyckoff' has tokens for texts by symmetry of two decimals only: text.version='wyckoff'",
        )
        require(
            self.text.version != "cif" or not self.task.infill,
            f"task.infill={self.task.infill} must be 0 with text.version='cif', where no element has a line of its own",
        )
        if missing := set(self.lora.targets) - set(self.model.projections):
            raise ValueError(
                f"lora.targets has {', '.join(sorted(missing))}; model.architecture={self.model.architecture!r} has "
                f"{', '.join(self.model.projections)}"
            )
        most, row = self.model.num_positions, self.data.seq_len
        require(
            most is None or row <= most,
            f"data.seq_len={row} is more than model.num_positions={most}, the longest text that the model can read",
        )
        chunk = self.execution.loss_chunk
        require(not chunk or row % chunk == 0, f"execution.loss_chunk={chunk} does not divide data.seq_len={row}")
        require(
            self.execution.attention != "splash" or row % SPLASH_TOKENS == 0,
            f"execution.attention='splash' takes rows of a multiple of {SPLASH_TOKENS} tokens, not data.seq_len={row}",
        )


def from_config_dict(tree: Mapping[str, Any], *, vocab_size: int) -> Experiment:
    """Builds the typed configuration; `vocab_size` fills the model's where the config leaves it out.

    Raises:
        UserError: a section or key is missing, unknown, or has an impossible value.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"the configuration is {tree!r:.60}, not nested sections")
    fields = {field.name: field for field in dataclasses.fields(Experiment)}
    if unknown := sorted(map(str, set(tree) - set(fields))):
        raise UserError(f"config has unknown keys {', '.join(unknown)}; expected {', '.join(fields)}")
    built: dict[str, Any] = {}
    for name, field in fields.items():
        if name in tree:
            built[name] = _section(tree, name, vocab_size=vocab_size)
        elif field.default is dataclasses.MISSING:
            raise UserError(f"config lacks the section {name!r}")
    try:
        return Experiment(**built)
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def tokenizer_config(tree: Mapping[str, Any]) -> TokenizerConfig:
    """The tokenizer that a tree states; it decides the vocabulary's size, which the typed configuration needs.

    Raises:
        UserError: the section is missing or wrong.
    """
    if not isinstance(tree, Mapping) or "tokenizer" not in tree:
        raise UserError("config lacks the section 'tokenizer'")
    return _section(tree, "tokenizer", vocab_size=0)


def _section(tree: Mapping[str, Any], name: str, *, vocab_size: int) -> Any:
    """A section in its type; ~ in a path is the home folder."""
    value = tree[name]
    try:
        if name == "base":
            require(isinstance(value, str), f"base is {value!r:.60}, not a text")
            return _at_home(value)
        if name == "mesh" and isinstance(value, str):
            return MeshConfig.parse(value)
        require(isinstance(value, Mapping), f"it is {value!r:.60}, not a section with keys")
        values = {str(key): tuple(each) if isinstance(each, list) else each for key, each in dict(value).items()}
        values = present_keys(name, values)
        if name == "model":
            return model_config(**{"vocab_size": vocab_size, **values})
        if (key := _PATHS.get(name)) and isinstance(path := values.get(key), str):
            values[key] = _at_home(path)
        return build(_SECTIONS[name], name, values)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{name}: {str(error).replace('.__init__()', '')}") from error


def _at_home(path: str) -> str:
    return os.path.expanduser(path)  # noqa: PTH111 - Path refuses ~nobody, and shortens other names


_PATHS: Mapping[str, str] = {"tokenizer": "path", "data": "directory"}  # section → its key that is a path
_SECTIONS: Mapping[str, type] = {
    "lora": LoraConfig,
    "execution": ExecutionConfig,
    "text": TextFormat,
    "tokenizer": TokenizerConfig,
    "task": TaskConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "mesh": MeshConfig,
    "quantize": QuantizationConfig,
    "guard": GuardConfig,
}
