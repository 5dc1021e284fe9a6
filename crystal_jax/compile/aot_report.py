"""Compiles one program of a configuration for a topology, and reports its memory, cost and estimated time."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from crystal_jax.checkpoint.models import abstract_parameters
from crystal_jax.compile.analysis.cost import Cost, count
from crystal_jax.compile.analysis.hlo import parse
from crystal_jax.compile.analysis.roofline import bytes_on_a_chip
from crystal_jax.compile.chips import GPU_MEMORY_FRACTION, Chip
from crystal_jax.compile.options import CompileOptions
from crystal_jax.compile.programs import MEAN_COMPLETION, Lowered, lower, sampling_mesh, sampling_rows
from crystal_jax.compile.topology import Topology
from crystal_jax.config import Experiment, MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.provenance import versions
from crystal_jax.sharding import AXES, make_mesh

# Positions per crystal in packed rows, with LLaMA-2's tokenizer and the paper's tasks on mp20_open: 269 tokens, and
# 4.6 % of the positions are padding when 64 rows of 1,024 are packed together.
PLACES_PER_CRYSTAL = 282
_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds that each part of a chip is busy, at the peaks of `chips.py`; the step takes as long as the longest part.

    This is a bound, not a measurement: no part reaches its peak, and not everything overlaps.

    Attributes:
        compute: time of matrix products.
        memory: time of HBM traffic.
        links: time to receive data from other chips of the slice, over the links that the slice's shape has.
        network: time to receive data from other slices; None if the bandwidth is not published.
        mfu: model FLOPs utilisation, a share of the chips' peak. In training only necessary arithmetic counts
            (model/flops.py), in sampling all arithmetic.
        crystals_per_hour: crystals trained on, or sampled if every finished slot is refilled at once.
    """

    compute: float
    memory: float
    links: float
    network: float | None
    mfu: float | None
    crystals_per_hour: float | None

    @property
    def step(self) -> float:
        """Estimated time of a step, in s."""
        return max(self.compute, self.memory, self.links, self.network or 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Floors:
    """Lower bounds on the time of a step in s, at the peaks of `chips.py`; most steps take longer.

    Attributes:
        compute: time of matrix products. In training only the necessary ones count (model/flops.py), without
            recomputation and attention; in sampling all products of the equations count, with a full cache.
        memory: time to read weights and a full cache once; None except for decoding.
    """

    compute: float
    memory: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Compiled program and its analysis, in bytes and operations of one chip.

    For TPUs the program's operations are counted and its time is estimated (`cost`, `estimate`). A GPU's program calls
    libraries and kernels whose work its text does not show, so the report has `floors` instead. Missing parts are None.

    `memory` has, in bytes: arguments, outputs, the aliased part of these, temporaries, the compiler's peak, and the
    limit; for GPUs also `beside`, what sampling holds in addition to the program's arguments, and `needed`, the total.

    `to_json` has everything except `text`, the program.
    """

    config: str
    what: str
    topology: str
    num_slices: int
    chips: int
    mesh: dict[str, int]
    base: str
    cache: str
    rows: int
    length: int
    accumulate: int
    optimization_level: str
    compiler_options: dict[str, str]
    compile_seconds: float
    memory: dict[str, int]
    expected_flops: float
    expected_bytes: float | None
    expected_arguments: int
    cost: Cost | None
    estimate: Estimate | None
    floors: Floors | None
    versions: dict[str, str]
    text: str = dataclasses.field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Returns nested dicts, without missing parts and with the estimated time of a step."""
        content = dataclasses.asdict(self)
        del content["text"]
        for name in ("cost", "estimate", "floors"):
            if content[name] is None:
                del content[name]
        if self.estimate is not None:
            content["estimate"]["step"] = self.estimate.step
        return content


_DEFAULT = CompileOptions()


def compile_case(
    experiment: Experiment,
    where: Topology,
    *,
    config: str,
    what: str,
    options: CompileOptions = _DEFAULT,
) -> Report:
    """Compiles one program, without creating any arrays of the model.

    Args:
        experiment: the configuration.
        where: the slices, or GPUs.
        config: name of the configuration in the report.
        what: train, prefill or decode.
        options: how it is compiled.

    Raises:
        UserError: the program does not fit the memory of a chip, or an array does not divide over the mesh.
    """
    chosen, lowered = _lower(experiment, where, what, options)
    begin = time.perf_counter()
    with _optimization(options.optimization_level):
        compiled = _compile(lowered, options.compiler_options, f"{config} {what} on {where.name}")
    seconds = time.perf_counter() - begin
    text = compiled.as_text() or ""
    sizes: Any = compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "aliased": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "peak": sizes.peak_memory_in_bytes,
        "limit": where.chip.hbm_limit,
    }
    cost, bound, floors = None, None, None
    if where.is_gpu:
        memory |= _needed(memory, lowered.beside, f"{config} {what} on {where.name}")
        floors = floors_of(experiment, what, lowered, where)
    else:
        cost = count(parse(text), chips_per_slice=where.chips_per_slice if where.num_slices > 1 else None)
        bound = estimate(experiment, what, lowered, cost, where)
    return Report(
        config=config,
        what=what,
        topology=where.name,
        num_slices=where.num_slices,
        chips=len(where.devices),
        mesh=dict(zip(AXES, chosen, strict=True)),
        base=experiment.model.dtype if experiment.quantize.kind == "none" else experiment.quantize.kind,
        cache="int8" if options.coded else experiment.model.dtype,
        rows=lowered.rows,
        length=lowered.length,
        accumulate=experiment.optimizer.accumulate if what == "train" else 1,
        optimization_level=options.optimization_level,
        compiler_options=dict(options.compiler_options),
        compile_seconds=seconds,
        memory=memory,
        expected_flops=lowered.flops / len(where.devices),
        expected_bytes=lowered.bytes,
        expected_arguments=lowered.arguments,
        cost=cost,
        estimate=bound,
        floors=floors,
        versions=versions(("jax", "jaxlib", "jax-cuda13-plugin" if where.is_gpu else "libtpu", "flax")),
        text=text,
    )


def _lower(
    experiment: Experiment, where: Topology, what: str, options: CompileOptions
) -> tuple[tuple[int, ...], Lowered]:
    """Returns the sizes of the mesh, and the program before compilation."""
    if what == "train":
        built = make_mesh(options.mesh or experiment.mesh, where.devices)
        return built.devices.shape, lower(what, experiment, built, rows=0)
    alone = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), where.devices[:1])
    weights = bytes_on_a_chip(abstract_parameters(experiment, alone, experiment.quantize)[1:])
    limit = where.chip.hbm_limit
    own = sampling_mesh(experiment.model, weights, devices=len(where.devices), hbm=limit)
    built = make_mesh(options.mesh or own, where.devices)
    rows = options.rows
    if rows is None:
        states = abstract_parameters(experiment, built, experiment.quantize)[1:]
        rows = sampling_rows(experiment.model, states, built, hbm=limit, coded=options.coded)
    return built.devices.shape, lower(what, experiment, built, rows=rows, coded=options.coded)


@contextlib.contextmanager
def _optimization(level: str) -> Iterator[None]:
    before = jax.config.jax_optimization_level  # type: ignore[attr-defined]
    jax.config.update("jax_optimization_level", "UNKNOWN" if level == "default" else level)
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _compile(lowered: Lowered, options: Mapping[str, str], title: str) -> jax.stages.Compiled:
    try:
        with warnings.catch_warnings():
            # JAX's compilation cache stores programs for absent GPUs, but cannot read them back, and warns.
            warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
            return lowered.program.compile(dict(options) or None)
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" in text:
            raise _does_not_fit(title, _overflow(text)) from error
        raise UserError(f"{title}: the compiler says: {text[:300]}") from error


def _does_not_fit(title: str, what: str) -> UserError:
    return UserError(
        f"{title} does not fit: {what}; take more chips, fewer rows, a quantised base, or more micro-batches "
        "(--config.optimizer.accumulate)"
    )


def _needed(memory: Mapping[str, int], beside: int, title: str) -> dict[str, int]:
    """Checks a GPU's memory, because its compiler does not refuse a program that is too large; returns sizes in bytes.

    Raises:
        UserError: the program does not fit.
    """
    needed = beside + memory["arguments"] + memory["outputs"] - memory["aliased"] + memory["temporaries"]
    if needed > memory["limit"]:
        sizes = f"{needed / _GIB:.2f}GiB of a chip's memory, which has {memory['limit'] / _GIB:.2f}GiB"
        raise _does_not_fit(title, f"it needs {sizes} ({GPU_MEMORY_FRACTION:.0%} of the card's)")
    return {"beside": beside, "needed": needed}


def _overflow(text: str) -> str:
    """Extracts the needed and available memory from the compiler's message."""
    match = re.search(r"\(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)", text)
    match = match or re.search(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm", text)
    return f"it needs {match[1]}iB of a chip's memory, which has {match[2]}iB" if match else text[:200]


def estimate(experiment: Experiment, what: str, lowered: Lowered, cost: Cost, where: Topology) -> Estimate:
    """Computes the roofline estimate: each part of the chip at its peak."""
    chip = where.chip
    received = sum(t.bytes - t.between_slices for t in cost.collectives.values())
    crossing = sum(t.between_slices for t in cost.collectives.values())
    network = None if crossing and chip.dcn_gbps is None else crossing / (chip.dcn_gbps or 1) / 1e9
    times = Estimate(
        compute=cost.flops / chip.tflops / 1e12,
        memory=cost.bytes / chip.hbm_gbps / 1e9,
        links=received / usable_links(chip, where.shape) / 1e9,
        network=network,
        mfu=None,
        crystals_per_hour=None,
    )
    if what == "prefill":
        return times
    peak = chip.tflops * 1e12 * len(where.devices) * times.step
    if what == "train":
        useful = _train_flops(experiment, lowered)
        each = lowered.rows * lowered.length / PLACES_PER_CRYSTAL
    else:
        useful, each = lowered.flops, lowered.rows / MEAN_COMPLETION
    return dataclasses.replace(times, mfu=useful / peak, crystals_per_hour=3600 * each / times.step)


def floors_of(experiment: Experiment, what: str, lowered: Lowered, where: Topology) -> Floors:
    """Computes lower bounds on the time, which hold for any compiled program."""
    chip = where.chip
    products = _train_flops(experiment, lowered) if what == "train" else lowered.flops
    return Floors(
        compute=products / len(where.devices) / chip.tflops / 1e12,
        memory=None if lowered.bytes is None else lowered.bytes / chip.hbm_gbps / 1e9,
    )


def _train_flops(experiment: Experiment, lowered: Lowered) -> float:
    """Returns the necessary operations of a training step, on all chips together."""
    return train_flops_per_token(experiment.model, experiment.lora) * lowered.rows * lowered.length


def usable_links(chip: Chip, shape: tuple[int, ...]) -> float:
    """Returns the rate in 10⁹ bytes/s at which a chip can receive in a slice; links along an axis of one chip are
    unused.
    """
    axes = sum(size > 1 for size in shape)
    return chip.ici_gbps * max(axes, 1) / chip.ici_axes
