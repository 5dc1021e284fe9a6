"""Result of a relaxation, and its row in a log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from crystal_jax.energy.model import Cell
from crystal_jax.json_files import finite
from crystal_jax.suppress_warnings import quiet

Status = Literal["converged", "steps", "timeout", "exploded", "refused", "crashed"]


@dataclasses.dataclass(frozen=True)
class Relaxed:
    """Result of a relaxation.

    Attributes:
        key: key of the crystal.
        status: "converged"; "steps" if `max_steps` was reached, in which case the energy counts, as in the paper; or
            the type of failure.
        reason: reason of a failure.
        energy: the model's energy of the whole cell, in eV; None for a failure.
        first_energy: the same before the first step.
        steps: number of steps taken.
        seconds: time of this crystal, see `RelaxSettings.timeout`.
        cell: the final cell, or the initial one of a failure.
    """

    key: str
    status: Status
    reason: str
    energy: float | None
    first_energy: float | None
    steps: int
    seconds: float
    cell: Cell

    @property
    def succeeded(self) -> bool:
        """Whether the result has an energy."""
        return self.energy is not None


@quiet()
def row_of(result: Relaxed) -> dict[str, Any]:
    """Returns a log row: the fields of the result, energies of the cell in eV, and the relaxed crystal as a CIF."""
    cell = result.cell.to_structure().to(fmt="cif") if result.succeeded else None
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result) if field.name != "cell"}
    return fields | {"num_atoms": len(result.cell.numbers), "relaxed_cif": cell}


def is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a row has all fields that `row_of` writes."""
    energy = row.get("energy")
    return (
        row.get("status") in get_args(Status)
        and isinstance(row.get("reason"), str)
        and isinstance(row.get("steps"), int)
        and (energy is None or finite(energy) is not None)
        and (energy is None or isinstance(row.get("relaxed_cif"), str))
        and isinstance(row.get("num_atoms"), int)
    )
