"""The stages of an evaluation: each computes columns of the table from columns that other stages have computed.

A stage is a pure function. It receives the columns that it declares in `needs`, and no others, and returns the columns
that it declares in `gives`. The order of `STAGES` therefore has no influence on the result.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import pandas as pd

from crystal_jax.energy.convex_hull.known_materials import KnownMaterials, reduced
from crystal_jax.energy.model import includes_corrections
from crystal_jax.evaluate import checks
from crystal_jax.evaluate.columns import TYPES, empty_column
from crystal_jax.evaluate.cutoffs import CUTOFFS
from crystal_jax.evaluate.fingerprints import comparison
from crystal_jax.evaluate.inputs import Inputs
from crystal_jax.evaluate.metrics import conditions, dft_runs, external_results, stability
from crystal_jax.evaluate.novelty import matches

Columns = Mapping[str, pd.Series] | pd.DataFrame
RELAXATIONS = "relaxations"  # folder of their logs in the evaluation's folder


class _How(TypedDict):
    workers: int | None
    progress: bool


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        compute: returns the new columns from the needed ones; rows that a column leaves out have no value in it.
        gives: names of the new columns.
        needs: names of the needed columns.
        applies: whether the evaluation has what the stage needs; otherwise its columns are empty.
    """

    compute: Callable[[pd.DataFrame, Inputs], Columns]
    gives: Sequence[str]
    needs: Sequence[str] = ()
    applies: Callable[[Inputs], bool] = lambda _: True


def run_stages(inputs: Inputs, stages: Sequence[Stage] | None = None) -> pd.DataFrame:
    """Runs the stages, each as soon as the columns that it needs are known, and returns the table.

    Args:
        inputs: what the evaluation reads.
        stages: the stages, in any order; by default `STAGES`.

    Raises:
        ValueError: two stages give the same column, or stages wait for each other.
    """
    waiting = list(STAGES if stages is None else stages)
    given = [name for stage in waiting for name in stage.gives]
    if len(given) != len(set(given)):
        raise ValueError(f"two stages give a column: {sorted({name for name in given if given.count(name) > 1})}")
    table = pd.DataFrame(index=range(len(inputs.entries)))
    while waiting:
        stage = next((stage for stage in waiting if set(stage.needs) <= set(table.columns)), None)
        if stage is None:
            raise ValueError(f"stages wait for columns that none gives: {[list(stage.needs) for stage in waiting]}")
        waiting.remove(stage)
        table = pd.concat([table, _new_columns(stage, table, inputs)], axis=1)
    missing = [name for name in TYPES if name not in table]
    return pd.concat([table, *(empty_column(name, len(table)) for name in missing)], axis=1)[list(TYPES)]


def _new_columns(stage: Stage, table: pd.DataFrame, inputs: Inputs) -> pd.DataFrame:
    """Returns the columns of a stage, in their types, one row per sample.

    Raises:
        ValueError: the stage returns other columns than it declares.
    """
    found: dict[str, pd.Series] = {}
    if stage.applies(inputs):
        computed = stage.compute(table[list(stage.needs)], inputs)
        found = {str(name): column for name, column in computed.items()}
        if set(found) - set(stage.gives):
            raise ValueError(f"a stage returns columns that it does not declare: {set(found) - set(stage.gives)}")
    columns = {}
    for name in stage.gives:
        empty = empty_column(name, len(table))
        if name in found:
            column = found[name].reindex(table.index)
            columns[name] = (column.fillna(value=False) if TYPES[name] == "bool" else column).astype(empty.dtype)
        else:
            columns[name] = empty
    return pd.DataFrame(columns, index=table.index)


def _checks(_: pd.DataFrame, inputs: Inputs) -> Columns:
    return checks.check_samples(inputs.samples, inputs.oxidation, **_how(inputs))


def _primitive_cells(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return matches.primitive_cells(table, inputs.samples, **_how(inputs))


def _uniqueness(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return matches.uniqueness(table, progress=inputs.config.progress)


def _newness(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return matches.newness(table, inputs.train or (), progress=inputs.config.progress)


def _fingerprints(table: pd.DataFrame, inputs: Inputs) -> Columns:
    samples = inputs.samples
    if inputs.is_paper_mode:
        samples = comparison.considered(samples, table["passes_checks"])
    return comparison.fingerprint_columns(inputs.fingerprints_of(samples, "fingerprints"))


def _validity(table: pd.DataFrame, inputs: Inputs) -> Columns:
    """In the mode "paper", as published, a sample without a fingerprint is not valid."""
    if not (inputs.is_paper_mode and inputs.has_fingerprints):
        return {"valid": table["passes_checks"]}
    valid = table["passes_checks"] & table["structure_fingerprint"].notna()
    lost = table["passes_checks"] & ~valid
    return {"valid": valid, "validity_failure": lost.map({True: "no fingerprint", False: None})}


def _nearest(table: pd.DataFrame, inputs: Inputs) -> Columns:
    train = inputs.has_train_fingerprints
    return comparison.nearest_columns(
        table,
        inputs.reference_fingerprints,
        inputs.train_fingerprints if train else inputs.reference_fingerprints,
        comparison.named(inputs.train_samples if train else inputs.compared_reference),
        cutoffs=CUTOFFS[inputs.config.coverage_cutoffs],
        paper_mode=inputs.is_paper_mode,
    )


def _newness_by_fingerprint(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return comparison.newness_columns(table, inputs.train_fingerprints)


def _known_formula(table: pd.DataFrame, inputs: Inputs) -> Columns:
    known = inputs.known
    assert known is not None  # of `applies`
    valid = table.index[table["valid"]]
    return {"known_formula": pd.Series([_is_known(known, inputs, i) for i in valid], valid, dtype="boolean")}


def _is_known(known: KnownMaterials, inputs: Inputs, place: int) -> bool:
    composition = inputs.samples[place].composition
    return composition is not None and known.has(reduced(composition.get_el_amt_dict()))


def _relaxation(table: pd.DataFrame, inputs: Inputs) -> Columns:
    with tempfile.TemporaryDirectory() as temporary:
        output = inputs.config.output
        return stability.relaxation_columns(
            table,
            inputs.samples,
            inputs.config.relax_job,
            Path(output or temporary) / RELAXATIONS,
            paper_mode=inputs.is_paper_mode,
            ray_address=inputs.config.ray_address,
            **_how(inputs),
        )


def _energies(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return stability.energy_columns(
        table,
        inputs.samples,
        inputs.hull,
        inputs.known,
        model_hull=inputs.model_hull,
        corrected=includes_corrections(inputs.config.energy_model),
        progress=inputs.config.progress,
    )


def _dft(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return dft_runs.dft_columns(table, Path(inputs.config.output or ""))


def _has_dft(inputs: Inputs) -> bool:
    return inputs.config.output is not None and (Path(inputs.config.output) / dft_runs.FILE).exists()


def _conditions(table: pd.DataFrame, inputs: Inputs) -> Columns:
    return conditions.match_columns(table, inputs.entries, inputs.samples)


def _scores(_: pd.DataFrame, inputs: Inputs) -> Columns:
    assert inputs.scores is not None  # of `applies`
    return external_results.score_columns(inputs.scores)


def _failure_reason(table: pd.DataFrame, _: Inputs) -> Columns:
    """The failure of the latest stage counts: a crystal that was relaxed had passed the checks."""
    reason = table[_FAILURES[0]]
    for name in _FAILURES[1:]:
        reason = table[name].where(table[name].notna(), reason)
    return {"failure_reason": reason}


def _how(inputs: Inputs) -> _How:
    """Returns how long loops run."""
    return {"workers": inputs.config.workers, "progress": inputs.config.progress}


_FAILURES = ("checks_failure", "cell_failure", "validity_failure", "relaxation_failure", "hull_failure")
_PRINTS = ("structure_fingerprint", "composition_fingerprint", "fingerprint_failure")
STAGES = (
    Stage(_checks, gives=checks.COLUMNS),
    Stage(_primitive_cells, gives=("primitive_cell", "cell_failure"), needs=("passes_checks",)),
    Stage(_uniqueness, gives=("unique", "unique_loose"), needs=("passes_checks", "primitive_cell")),
    Stage(
        _newness,
        gives=("novel", "novel_loose", "matched_train_id"),
        needs=("passes_checks", "primitive_cell"),
        applies=lambda inputs: inputs.train is not None,
    ),
    Stage(_fingerprints, gives=_PRINTS, needs=("passes_checks",), applies=lambda inputs: inputs.has_fingerprints),
    Stage(_validity, gives=("valid", "validity_failure"), needs=("passes_checks", "structure_fingerprint")),
    Stage(
        _nearest,
        gives=("covered", "structure_distance", "composition_distance", "nearest_known"),
        needs=("valid", "density", *_PRINTS),
        applies=lambda inputs: inputs.has_fingerprints,
    ),
    Stage(
        _newness_by_fingerprint,
        gives=("new_by_structure", "new_by_composition", "novel_by_fingerprint"),
        needs=("valid", *_PRINTS),
        applies=lambda inputs: inputs.has_train_fingerprints,
    ),
    Stage(_known_formula, gives=("known_formula",), needs=("valid",), applies=lambda inputs: inputs.known is not None),
    Stage(
        _relaxation,
        gives=("relaxation_status", "relaxation_steps", "relaxed_cif", "relaxed_energy", "relaxation_failure"),
        needs=("valid", "num_atoms"),
        applies=lambda inputs: inputs.config.has_energies,
    ),
    Stage(
        _energies,
        gives=stability.ENERGY_COLUMNS,
        needs=("relaxed_cif", "relaxed_energy"),
        applies=lambda inputs: inputs.config.has_energies,
    ),
    Stage(_dft, gives=("dft_status", "e_above_hull_dft"), needs=("name", "formula"), applies=_has_dft),
    Stage(_conditions, gives=conditions.COLUMNS, needs=("e_above_hull",)),
    Stage(_scores, gives=("perplexity", "ipt"), applies=lambda inputs: inputs.scores is not None),
    Stage(_failure_reason, gives=("failure_reason",), needs=_FAILURES),
)
