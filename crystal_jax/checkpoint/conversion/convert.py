"""Converts a checkpoint from one format to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from crystal_jax.checkpoint.conversion import import_export
from crystal_jax.checkpoint.conversion.config import ConvertConfig
from crystal_jax.checkpoint.conversion.tokenizer_files import copy_tokenizer
from crystal_jax.checkpoint.formats import (
    easylm,
    easylm_rules,
    gguf,
    gguf_tokenizer,
    hf,
    llama2c,
    meta,
    peft,
    quantized,
)
from crystal_jax.checkpoint.tensors import Source
from crystal_jax.config import QuantizationConfig
from crystal_jax.model.presets import LLAMA2
from crystal_jax.storage.files import as_path

# Formats whose files need no further settings.
_SOURCES: Mapping[str, Callable[[Path], Source]] = {
    "hf": hf.HfSource,
    "meta": meta.MetaSource,
    "gguf": gguf.GgufSource,
    "llama2c": llama2c.Llama2cSource,
}


def convert_checkpoint(config: ConvertConfig) -> None:
    """Converts a checkpoint; see `crystal_jax.checkpoint.run`.

    Raises:
        UserError: the input is damaged, or not of its format; or EasyLM's partition rules shard a parameter
            differently.
    """
    if config.write_as == "peft":
        import_export.export_adapter(config.input, config.output, step=config.step)
        return
    if config.write_as == "crystal_jax":
        adapter = config.input if config.read_as == "peft" else None
        import_export.import_model(config.base or config.input, adapter, config.output, config.config or {})
        return
    source = _open(config)
    if config.partition_rules:
        easylm_rules.check_rules(easylm_rules.read_rules(config.partition_rules), source.config)
    if config.write_as == "easylm":
        easylm.write_easylm(config.output, source, dtype=hf.DTYPES[config.dtype])
    else:
        _write_folder(config, source)


def _open(config: ConvertConfig) -> Source:
    path = config.input
    if config.read_as == "crystal_jax":
        return import_export.merged_source(path, step=config.step)
    if config.read_as == "peft":
        return peft.MergedSource(hf.HfSource(config.base or path), peft.read_peft(path))
    if config.read_as == "easylm":
        name = config.architecture or ""
        cfg = LLAMA2[name] if name in LLAMA2 else hf.read_config(as_path(name, "architecture"))
        return easylm.EasyLmSource(path, cfg)
    return _SOURCES[config.read_as](path)


def _write_folder(config: ConvertConfig, source: Source) -> None:
    """Writes a Hugging Face folder, or a quantised base, with the files of the tokenizer."""
    shard_bytes = hf.SHARD_BYTES if config.shard_megabytes is None else int(config.shard_megabytes * 1e6)
    # Converted before the model is written, because some tokenizers cannot be converted.
    inside = gguf_tokenizer.tokenizer_files(source.metadata()) if isinstance(source, gguf.GgufSource) else {}
    if config.write_as == "quantized":
        kept = QuantizationConfig(kind=config.quantize, block_size=config.block_size)
        quantized.write_quantized(config.output, source, kept, dtype=config.dtype)
    elif config.read_as == "crystal_jax":
        import_export.export_model(
            config.input, source, config.output, dtype=config.dtype, step=config.step, shard_bytes=shard_bytes
        )
        return
    else:
        hf.write_hf(config.output, source, dtype=config.dtype, shard_bytes=shard_bytes)
    for name, content in inside.items():
        (config.output / name).write_bytes(content)
    copy_tokenizer(config.base if config.read_as == "peft" and config.base else config.input, config.output)
