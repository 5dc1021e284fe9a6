"""The settings of a conversion, written once: command-line flags and keyword arguments come from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from crystal_jax.errors import UserError
from crystal_jax.flag_fields import setting
from crystal_jax.storage.files import as_path

READ = ("hf", "meta", "easylm", "peft", "gguf", "llama2c", "crystal_jax")
WRITE = ("hf", "easylm", "peft", "crystal_jax", "quantized")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZE = ("int8", "int4", "nf4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """The settings of `crystal-jax convert`; the help of the flags says what each of them does.

    Attributes that are no flags:
        read_as, write_as: Formats of the input, of `READ`, and of the output, of `WRITE`.
        input, output: Files or folders; the output must not exist.
        config: The configuration tree of `crystal-jax train`, for write_as="crystal_jax".

    Raises:
        UserError: a setting is impossible, the input is missing, the output exists, or the settings cannot be combined.
    """

    read_as: str
    write_as: str
    input: Path
    output: Path
    dtype: str = setting("bfloat16", "Type of the written tensors.", choices=DTYPES)
    shard_megabytes: float | None = setting(
        None,
        "For --to=hf: a file holds no more than so many 10^6 bytes, unless it be of one tensor; 5,000 by default.",
        bounds=(0.001, None),
    )
    base: Path | None = setting(None, "The Hugging Face folder that an adapter adapts.")
    architecture: str | None = setting(
        None, "For easylm, which does not state it: 7b, 13b, 70b, or a folder with config.json."
    )
    quantize: Literal["int8", "int4", "nf4"] = setting("int8", "For --to=quantized.", choices=QUANTIZE)
    block_size: int = setting(64, "For --to=quantized in 4 bits: weights that share a scale.", bounds=(1, 2**20))
    partition_rules: Path | None = setting(
        None,
        "For easylm: a JSON list of [regular expression, [mesh axis, null or list, ...]], EasyLM's partition rules. "
        "Nothing is converted unless they place every parameter as it is placed here.",
    )
    step: int | None = setting(None, "A workdir's checkpoint; the last one by default.", bounds=(0, None))
    config: Mapping[str, Any] | None = None

    def __post_init__(self):
        for name in ("base", "partition_rules"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_path(value, name))
        for name, choices in (("read_as", READ), ("write_as", WRITE), ("dtype", DTYPES), ("quantize", QUANTIZE)):
            _check_choice(name, getattr(self, name), choices)
        if self.output.exists():
            raise UserError(f"{self.output} exists already; choose another --output")
        if self.shard_megabytes is not None and self.write_as != "hf":
            raise UserError("--shard_megabytes goes with --to=hf")
        if not (self.input.is_file() or self.input.is_dir()):
            raise UserError(f"{self.input}: no such file or folder")
        if self.partition_rules and self.read_as != "easylm":
            raise UserError("--partition_rules are EasyLM's: they go with --from=easylm")
        if self.write_as == "peft" and self.read_as != "crystal_jax":
            raise UserError("--to=peft writes the adapter of a workdir: --from=crystal_jax")
        if self.write_as == "crystal_jax":
            if self.read_as not in ("hf", "peft"):
                raise UserError("--to=crystal_jax reads hf or peft; convert to hf first")
            if self.config is None:
                raise UserError("--to=crystal_jax needs --config: the tokenizer and text format are not in the input")
        if self.read_as == "peft" and self.base is None:
            raise UserError("--from=peft needs --base, the Hugging Face folder that the adapter adapts")
        if self.read_as == "easylm" and self.architecture is None:
            raise UserError("--from=easylm needs --architecture: 7b, 13b, 70b, or a folder with config.json")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; there are: {', '.join(choices)}")
