"""Measures relaxations an hour: this project's loop against ASE, refill against fixed batches, growth with size.

All runs use the same potential, the same crystals (displaced by 0.06 Å), fmax and steps. ASE relaxes one crystal after
the other with its FIRE and the same compiled energies. Compilation is counted and timed apart: each variant runs on a
few crystals first.

    PYTHONPATH=. python benchmarks/relax_speed.py --crystals=../shared/data/mp20_open/test.csv.gz \
        --larger=../shared/data/mp52_open/test.csv.gz --energy_weights=../shared/weights/m3gnet/MP-2021.2.8-EFS
"""

from __future__ import annotations

import functools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.machine import processor
from crystal_jax.allocator import keep_freed_memory
from crystal_jax.energy.model import Cell, EnergyModel, load_model
from crystal_jax.energy.relaxation.ase_reference import relax_with_ase
from crystal_jax.energy.relaxation.relax import relax
from crystal_jax.energy.relaxation.result import Relaxed
from crystal_jax.energy.relaxation.runner import relax_all
from crystal_jax.energy.settings import RelaxJob, RelaxSettings
from crystal_jax.structures import Entry, parse, read_entries

FLAGS = flags.FLAGS
flags.DEFINE_string("crystals", None, "CSV of crystals of up to 20 atoms.", required=True)
flags.DEFINE_string("larger", None, "CSV of crystals of 21 to 52 atoms.")
flags.DEFINE_string("energy_model", "m3gnet", "Potential.")
flags.DEFINE_string("energy_weights", None, "Folder of its weights.")
flags.DEFINE_integer("number", 200, "Crystals relaxed in batches.")
flags.DEFINE_integer("number_ase", 40, "Crystals relaxed with ASE, the first of them.")
flags.DEFINE_integer("seed", 0, "Of the choice and of the displacements.")

_FIXED = 8  # crystals of a fixed batch


def main(_: Sequence[str]) -> None:
    """Prints a JSON object."""
    keep_freed_memory()
    settings = RelaxSettings()
    weights = Path(FLAGS.energy_weights) if FLAGS.energy_weights else None
    start = time.perf_counter()
    model = load_model(FLAGS.energy_model, weights=weights)
    cells = displaced(FLAGS.crystals, FLAGS.number)
    for number in (1, 3, 30):  # each size of a batch is compiled once
        list(relax(model, cells[:number], RelaxSettings(max_steps=2)))
    report: dict[str, object] = {"processor": processor(), "seconds_to_load_and_compile": time.perf_counter() - start}

    batched, seconds = timed(lambda: list(relax(model, cells, settings)))
    report["batches_with_refill"] = rate(batched, seconds)
    fixed, fixed_seconds = timed(lambda: in_fixed_batches(model, cells, settings))
    report["fixed_batches"] = rate(fixed, fixed_seconds)
    few = cells[: FLAGS.number_ase]
    relax_with_ase(model, *few[0], RelaxSettings(max_steps=2))
    one_by_one, ase_seconds = timed(lambda: [relax_with_ase(model, key, cell, settings) for key, cell in few])
    report["ase_one_by_one"] = rate(one_by_one, ase_seconds)
    report["energies"] = difference(batched, one_by_one)
    report["processes"] = in_processes(cells, settings)
    if FLAGS.larger:
        report["by_atoms"] = by_atoms(model, cells + displaced(FLAGS.larger, FLAGS.number // 4), settings)
    print(json.dumps(report, indent=2))


def displaced(path: str, number: int) -> list[tuple[str, Cell]]:
    """Returns crystals of elements that M3GNet knows, with a random displacement of each atom."""
    entries = read_entries(Path(path))
    rng = np.random.default_rng(FLAGS.seed)
    chosen: list[tuple[str, Cell]] = []
    for place in rng.permutation(len(entries)):
        structure = parse(entries[place]).structure
        if structure is None or max(site.specie.Z for site in structure) > 94:
            continue
        cell = Cell.of(structure)
        moved = cell.positions + rng.normal(scale=0.06, size=cell.positions.shape)
        chosen.append((entries[place].name, Cell(cell.numbers, moved, cell.lattice)))
        if len(chosen) == number:
            break
    return chosen


def in_fixed_batches(model: EnergyModel, cells: Sequence[tuple[str, Cell]], settings: RelaxSettings) -> list[Relaxed]:
    """Relaxes batches of crystals one after the other: each batch runs until its last crystal has finished."""
    batches = [cells[begin : begin + _FIXED] for begin in range(0, len(cells), _FIXED)]
    return [found for batch in batches for found in relax(model, batch, settings)]


def in_processes(cells: Sequence[tuple[str, Cell]], settings: RelaxSettings) -> dict[str, float]:
    """Relaxes through the runner: a process for each core, each with its own model, start-up included."""
    cifs = [Entry(key, cell.to_structure().to(fmt="cif")).cif for key, cell in cells]
    job = RelaxJob(model=FLAGS.energy_model, weights=FLAGS.energy_weights or "", settings=settings)
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = timed(lambda: relax_all(cifs, job, Path(folder)))
    return {"crystals": len(found), "seconds": round(seconds, 2), "an_hour": round(3600 * len(found) / seconds)}


def by_atoms(
    model: EnergyModel, cells: Sequence[tuple[str, Cell]], settings: RelaxSettings
) -> dict[str, dict[str, float]]:
    """Returns the rate by number of atoms."""
    found = {}
    for low, high in ((1, 5), (6, 10), (11, 20), (21, 35), (36, 52)):
        some = [(key, cell) for key, cell in cells if low <= len(cell.numbers) <= high][:50]
        if some:
            results, seconds = timed(functools.partial(_relaxed, model, some, settings))
            found[f"{low} to {high} atoms"] = rate(results, seconds)
    return found


def _relaxed(model: EnergyModel, cells: Sequence[tuple[str, Cell]], settings: RelaxSettings) -> list[Relaxed]:
    return list(relax(model, cells, settings))


def timed(run: Callable[[], list[Relaxed]]) -> tuple[list[Relaxed], float]:
    """Returns the result of a call, and its wall time in s."""
    begin = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begin


def rate(results: Sequence[Relaxed], seconds: float) -> dict[str, float]:
    """Returns relaxations an hour, and ms for each evaluation of a crystal."""
    evaluations = sum(result.steps + 1 for result in results)
    return {
        "crystals": len(results),
        "converged": sum(result.status == "converged" for result in results),
        "seconds": round(seconds, 2),
        "an_hour": round(3600 * len(results) / seconds),
        "ms_per_evaluation": round(1e3 * seconds / evaluations, 3),
    }


def difference(ours: Sequence[Relaxed], theirs: Sequence[Relaxed]) -> dict[str, float]:
    """Compares relaxed energies, meV/atom."""
    energies = {result.key: result.energy for result in ours if result.energy is not None}
    apart = [
        1e3 * abs(result.energy - energies[result.key]) / len(result.cell.numbers)
        for result in theirs
        if result.energy is not None and result.key in energies
    ]
    return {
        "compared": len(apart),
        "share_within_2_meV_per_atom": float(np.mean(np.array(apart) < 2)),
        "largest_meV_per_atom": round(max(apart), 3),
    }


if __name__ == "__main__":
    app.run(main)
