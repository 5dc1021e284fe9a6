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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import flags
from ml_collections import config_flags

from crystal_jax.errors import UserError
from crystal_jax.storage.files import as_path

READ = ("hf", "meta", "easylm", "peft", "gguf", "llama2c", "crystal_jax")
WRITE = ("hf", "easylm", "peft", "crystal_jax", "quantized")
DTYPES = ("float32", "bfloat16", "float16")
QUANTIZE = ("int8", "int4", "nf4")


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax convert`."""
    flags.DEFINE_enum("from", None, READ, "Format of the input.", flag_values=flag_values)
    flags.DEFINE_enum("to", None, WRITE, "Format of the output.", flag_values=flag_values)
    flags.DEFINE_string("input", None, "File or folder to read.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "File (easylm) or folder to write; must not exist.", flag_values=flag_values)
    flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "Type of the written tensors.", flag_values=flag_values)
    flags.DEFINE_float(
        "shard_megabytes",
        None,
        "For --to=hf: a file holds no more than so many 10^6 bytes, unless it be of one tensor; 5,000 by default.",
        lower_bound=0.001,
        flag_values=flag_values,
    )
    flags.DEFINE_string("base", None, "The Hugging Face folder that an adapter adapts.", flag_values=flag_values)
    flags.DEFINE_string(
        "architecture",
        None,
        "For easylm, which does not state it: 7b, 13b, 70b, or a folder with config.json.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum("quantize", "int8", QUANTIZE, "For --to=quantized.", flag_values=flag_values)
    flags.DEFINE_integer(
        "block_size",
        64,
        "For --to=quantized in 4 bits: weights that share a scale.",
        lower_bound=1,
        upper_bound=2**20,
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "partition_rules",
        None,
        "For easylm: a JSON list of [regular expression, [mesh axis, null or list, ...]], EasyLM's partition rules. "
        "Nothing is converted unless they place every parameter as it is placed here.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "step", None, "A workdir's checkpoint; the last one by default.", lower_bound=0, flag_values=flag_values
    )
    config_flags.DEFINE_config_file(
        "config", None, "For --to=crystal_jax: FILE.py or FILE.py:variant.", flag_values=flag_values
    )
    flags.mark_flags_as_required(["from", "to", "input", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax convert`."""
    convert(
        str(flag_values["from"].value),
        flag_values.to,
        input=flag_values.input,
        output=flag_values.output,
        dtype=flag_values.dtype,
        base=flag_values.base or None,
        architecture=flag_values.architecture,
        partition_rules=flag_values.partition_rules or None,
        step=flag_values.step,
        quantize=flag_values.quantize,
        block_size=flag_values.block_size,
        config=flag_values.config.to_dict() if flag_values.config else None,
        shard_megabytes=flag_values.shard_megabytes,
    )
    print(f"{flag_values.to}: {flag_values.output}")
    if flag_values.partition_rules:
        print(f"{flag_values.partition_rules}: these rules map, so a mesh dp,fsdp,mp holds the same shards here")


def convert(
    read_as: str,
    write_as: str,
    *,
    input: Path | str,  # noqa: A002
    output: Path | str,
    dtype: str = "bfloat16",
    base: Path | str | None = None,
    architecture: str | None = None,
    partition_rules: Path | str | None = None,
    step: int | None = None,
    quantize: Literal["int8", "int4", "nf4"] = "int8",
    block_size: int = 64,
    config: Mapping[str, Any] | None = None,
    shard_megabytes: float | None = None,
) -> None:
    """Converts a checkpoint; the arguments correspond to the flags.

    Raises:
        UserError: the input is missing, damaged, or not of its format; the output exists; the two formats cannot be
            combined; or EasyLM's partition rules shard a parameter differently.
    """
    source_path, output = as_path(input, "input"), as_path(output, "output")
    base = None if base is None else as_path(base, "base")
    partition_rules = None if partition_rules is None else as_path(partition_rules, "partition_rules")
    _check_choice("read_as", read_as, READ)
    _check_choice("write_as", write_as, WRITE)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("quantize", quantize, QUANTIZE)
    if output.exists():
        raise UserError(f"{output} exists already; choose another --output")
    if shard_megabytes is not None and write_as != "hf":
        raise UserError("--shard_megabytes goes with --to=hf")
    if not (source_path.is_file() or source_path.is_dir()):
        raise UserError(f"{source_path}: no such file or folder")
    if partition_rules and read_as != "easylm":
        raise UserError("--partition_rules are EasyLM's: they go with --from=easylm")
    # Imported late, so that --help and flag errors are fast.
    from crystal_jax.checkpoint import import_export
    from crystal_jax.checkpoint.formats import easylm, easylm_rules, gguf, gguf_tokenizer, hf, quantized
    from crystal_jax.checkpoint.tokenizer_files import copy_tokenizer
    from crystal_jax.config import QuantizationConfig

    if write_as == "peft":
        if read_as != "crystal_jax":
            raise UserError("--to=peft writes the adapter of a workdir: --from=crystal_jax")
        import_export.export_adapter(source_path, output, step=step)
        return
    if write_as == "crystal_jax":
        if read_as not in ("hf", "peft"):
            raise UserError("--to=crystal_jax reads hf or peft; convert to hf first")
        if config is None:
            raise UserError("--to=crystal_jax needs --config: the tokenizer and text format are not in the input")
        adapter = source_path if read_as == "peft" else None
        if adapter and base is None:
            raise UserError("--from=peft needs --base, the Hugging Face folder that the adapter adapts")
        import_export.import_model(base or source_path, adapter, output, config)
        return
    source = _open(read_as, source_path, base=base, architecture=architecture, step=step)
    if partition_rules:
        easylm_rules.check_rules(easylm_rules.read_rules(partition_rules), source.config)
    if write_as == "easylm":
        easylm.write_easylm(output, source, dtype=hf.DTYPES[dtype])
        return
    shard_bytes = hf.SHARD_BYTES if shard_megabytes is None else int(shard_megabytes * 1e6)
    # Converted before the model is written, because some tokenizers cannot be converted.
    inside = gguf_tokenizer.tokenizer_files(source.metadata()) if isinstance(source, gguf.GgufSource) else {}
    if write_as == "quantized":
        kept = QuantizationConfig(kind=quantize, block_size=block_size)
        quantized.write_quantized(output, source, kept, dtype=dtype)
    elif read_as == "crystal_jax":
        import_export.export_model(source_path, source, output, dtype=dtype, step=step, shard_bytes=shard_bytes)
        return
    else:
        hf.write_hf(output, source, dtype=dtype, shard_bytes=shard_bytes)
    for name, content in inside.items():
        (output / name).write_bytes(content)
    copy_tokenizer(base if read_as == "peft" and base else source_path, output)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{name} is {value!r}; there are: {', '.join(choices)}")


def _open(read_as: str, path: Path, *, base: Path | None, architecture: str | None, step: int | None) -> Any:
    """Opens the input as a `tensors.Source`."""
    from crystal_jax.checkpoint import import_export
    from crystal_jax.checkpoint.formats import easylm, gguf, hf, llama2c, meta, peft
    from crystal_jax.model.presets import LLAMA2

    if read_as == "crystal_jax":
        return import_export.merged_source(path, step=step)
    if read_as == "peft":
        if base is None:
            raise UserError("--from=peft needs --base, the Hugging Face folder that the adapter adapts")
        return peft.MergedSource(hf.HfSource(base), peft.read_peft(path))
    if read_as == "easylm":
        if architecture is None:
            raise UserError("--from=easylm needs --architecture: 7b, 13b, 70b, or a folder with config.json")
        cfg = LLAMA2[architecture] if architecture in LLAMA2 else hf.read_config(as_path(architecture, "architecture"))
        return easylm.EasyLmSource(path, cfg)
    sources = {"hf": hf.HfSource, "meta": meta.MetaSource, "gguf": gguf.GgufSource, "llama2c": llama2c.Llama2cSource}
    return sources[read_as](path)
