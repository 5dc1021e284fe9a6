"""Converts models between formats, tensor by tensor, without holding a complete model in memory.

  --from=hf           a Hugging Face folder (config.json, safetensors)          also --to
  --from=easylm       an EasyLM streaming checkpoint; give --architecture        also --to
  --from=peft         a PEFT LoRA adapter; give its --base, a Hugging Face folder  also --to
  --from=crystal_jax  the workdir of a training run                              also --to
                      (to hf: with the file that `crystal-jax sample --checkpoint` needs to read the folder)
  --from=meta         a folder of consolidated.*.pth and params.json
  --from=gguf         a GGUF file, dequantised, with its tokenizer
  --from=llama2c      a llama2.c file (version 0)

  --to=quantized      a quantised base, for adapters; takes --quantize: int8, int4 or nf4

An adapter is merged into its base, except with --to=peft, and with --to=crystal_jax, which keeps it separate.
--to=crystal_jax creates a workdir to sample from; it needs the --config of `crystal-jax train`, which defines the
tokenizer and text format that the model was trained on. --to=quantized rounds the kernels of the blocks as
`config.quantize` would at the start of each run: pass the folder as --config.base, with the same
--config.quantize.kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from crystal_jax import flag_fields
from crystal_jax.checkpoint.conversion.config import READ, WRITE, ConvertConfig
from crystal_jax.storage.files import as_path


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax convert`."""
    flags.DEFINE_enum("from", None, READ, "Format of the input.", flag_values=flag_values)
    flags.DEFINE_enum("to", None, WRITE, "Format of the output.", flag_values=flag_values)
    flags.DEFINE_string("input", None, "File or folder to read.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "File (easylm) or folder to write; must not exist.", flag_values=flag_values)
    flag_fields.define(flag_values, ConvertConfig)
    config_flags.DEFINE_config_file(
        "config", None, "For --to=crystal_jax: FILE.py or FILE.py:variant.", flag_values=flag_values
    )
    flags.mark_flags_as_required(["from", "to", "input", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax convert`."""
    settings = flag_fields.given(flag_values, ConvertConfig)
    settings |= {name: settings[name] or None for name in ("base", "partition_rules")}
    convert(
        str(flag_values["from"].value),
        flag_values.to,
        input=flag_values.input,
        output=flag_values.output,
        config=flag_values.config.to_dict() if flag_values.config else None,
        **settings,
    )
    print(f"{flag_values.to}: {flag_values.output}")
    if flag_values.partition_rules:
        print(f"{flag_values.partition_rules}: these rules map, so a mesh dp,fsdp,mp holds the same shards here")


def convert(read_as: str, write_as: str, *, input: Path | str, output: Path | str, **settings: Any) -> None:  # noqa: A002
    """Converts a checkpoint.

    Args:
        read_as: Format of the input.
        write_as: Format of the output.
        input: File or folder to read.
        output: File or folder to write; must not exist.
        settings: Further fields of `ConvertConfig`, which correspond to the flags.

    Raises:
        UserError: the input is missing, damaged, or not of its format; the output exists; the two formats cannot be
            combined; or EasyLM's partition rules shard a parameter differently.
        TypeError: a setting has an unknown name.
    """
    source, target = as_path(input, "input"), as_path(output, "output")
    config = ConvertConfig(read_as=read_as, write_as=write_as, input=source, output=target, **settings)
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.checkpoint.conversion.convert import convert_checkpoint

    convert_checkpoint(config)
