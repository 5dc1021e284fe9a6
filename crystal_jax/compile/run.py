"""Compiles a configuration's programs for TPUs or NVIDIA GPUs that are not present, and reports their requirements.

The training step and the two programs of sampling (prefill and decode) are compiled by the devices' own compiler for
--topology: a TPU slice by generation and shape in chips, as v5e:4x4 or v5p:4x4x4, or the GPUs of a host, as h100:8. The
report is printed, and written to --output as JSON. It states the memory of a chip against its limit. For TPUs it also
states matrix products against the model's equations, memory traffic, data sent between chips, and an estimate of the
time of a step at the chip's published peaks. GPU programs call libraries, so for GPUs it states the time that the
products and the memory traffic of the equations take at those peaks, which is a lower bound on a step. A program that
does not fit is refused with the bytes it needs. To install the compilers: pip install 'crystal-jax[tpu]',
'crystal-jax[cuda]'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from crystal_jax.compile.options import CompileOptions
from crystal_jax.config import Experiment, MeshConfig, from_config_dict, tokenizer_config
from crystal_jax.errors import UserError
from crystal_jax.storage.files import as_path, write_text
from crystal_jax.text.tokenizer import load_tokenizer


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of `crystal-jax compile`."""
    config_flags.DEFINE_config_file(
        "config", None, "Run configuration: FILE.py or FILE.py:variant.", flag_values=flag_values
    )
    flags.DEFINE_string("topology", None, "Slice or GPUs: v5e:4x4, h100:8.", flag_values=flag_values)
    flags.DEFINE_integer(
        "num_slices",
        1,
        "How many such slices, on one network.",
        lower_bound=1,
        upper_bound=4096,
        flag_values=flag_values,
    )
    programs = ["train", "prefill", "decode", "all"]
    flags.DEFINE_enum("program", "all", programs, "Which program.", flag_values=flag_values)
    flags.DEFINE_string(
        "mesh",
        None,
        "Another mesh: '1,-1,1' or 'data:1,fsdp:-1,tensor:1'; EasyLM's names work too.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Rows sampled side by side; by default what fits.",
        lower_bound=1,
        upper_bound=2**20,
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "kv_cache",
        "model",
        ["model", "int8"],
        "Sample with keys and values in the model's type, or in 8 bits.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "optimization_level", "default", ["default", "O1"], "O1 compiles several times faster.", flag_values=flag_values
    )
    flags.DEFINE_multi_string("xla", [], "A flag of the compiler, as NAME=VALUE.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "Directory for one JSON file a program.", flag_values=flag_values)
    flags.DEFINE_bool("hlo", False, "Write the compiled programs' text there, too.", flag_values=flag_values)
    flags.mark_flags_as_required(["config", "topology"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax compile`."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # TPUs or GPUs of this machine are not needed, and may be busy
    try:
        config = flag_values.config.to_dict()
    except OSError as error:  # ml_collections reports a file that does not load only at first use
        raise UserError(f"--config does not load: {' '.join(str(error.__cause__ or error).split())}") from error
    if malformed := [option for option in flag_values.xla if "=" not in option]:
        raise UserError(f"--xla={malformed[0]} is not written NAME=VALUE")
    try:
        mesh = MeshConfig.parse(flag_values.mesh) if flag_values.mesh else None
    except ValueError as error:
        raise UserError(str(error)) from error
    compile_config(
        config,
        name=config_flags.get_config_filename(flag_values["config"]),
        topology_name=flag_values.topology,
        num_slices=flag_values.num_slices,
        whats=("train", "prefill", "decode") if flag_values.program == "all" else (flag_values.program,),
        options=CompileOptions(
            mesh=mesh,
            rows=flag_values.batch_size,
            coded=flag_values.kv_cache == "int8",
            optimization_level=flag_values.optimization_level,
            compiler_options=dict(option.split("=", 1) for option in flag_values.xla),
        ),
        output=flag_values.output or None,
        hlo=flag_values.hlo,
    )


def compile_config(
    config: Mapping[str, Any],
    *,
    name: str,
    topology_name: str,
    num_slices: int = 1,
    whats: Sequence[str] = ("train",),
    options: CompileOptions,
    output: Path | str | None = None,
    hlo: bool = False,
) -> list[dict[str, Any]]:
    """Compiles some programs of a configuration tree, prints their reports, and returns them.

    Args:
        config: the configuration tree.
        name: name of the configuration in the reports.
        topology_name: the slice or GPUs, as v5e:4x4 or h100:8.
        num_slices: number of such slices.
        whats: programs: train, prefill, decode.
        options: how they are compiled.
        output: folder for the reports as JSON; None writes none.
        hlo: whether to write the compiled programs' text there, too.

    Raises:
        UserError: the configuration or topology is invalid, or a program does not fit.
    """
    # Imported late, so that --help and flag errors are fast.
    from crystal_jax.compile.aot_report import compile_case
    from crystal_jax.compile.print_report import show
    from crystal_jax.compile.topology import topology

    folder = None if output is None else as_path(output, "output")
    experiment, where = experiment_of(config), topology(topology_name, num_slices=num_slices)
    reports = []
    for what in whats:
        report = compile_case(experiment, where, config=name, what=what, options=options)
        print(show(report), flush=True)
        reports.append(report.to_json())
        if folder is not None:
            write_text(folder / f"{what}.json", json.dumps(reports[-1], indent=2) + "\n")
            if hlo:
                write_text(folder / f"{what}.hlo.txt", report.text)
    return reports


def experiment_of(config: Mapping[str, Any]) -> Experiment:
    """Returns the typed configuration; the tokenizer is loaded only if the vocabulary's size is not stated."""
    if isinstance(model := config.get("model"), Mapping) and "vocab_size" in model:
        return from_config_dict(config, vocab_size=0)
    stated = tokenizer_config(config)
    loaded = load_tokenizer(stated.name, Path(stated.path) if stated.path else None)
    return from_config_dict(config, vocab_size=loaded.vocab_size)
