"""Known crystals of a chemical system, from the Materials Project through its client mp-api."""

from __future__ import annotations

import itertools
import os

from crystal_jax.errors import UserError
from crystal_jax.structures import Entry, entry_of_structure

KEY = "MP_API_KEY"


def fetch_crystals(elements: frozenset[str], *, max_e_above_hull: float) -> list[Entry]:
    """Returns the crystals whose elements are among the given ones, named by their ids.

    Args:
        elements: symbols of the chemical system.
        max_e_above_hull: largest energy above the hull by DFT, eV/atom.

    Raises:
        UserError: mp-api is not installed, there is no key, or the Materials Project does not answer.
    """
    try:
        from mp_api.client import MPRester
    except ModuleNotFoundError as error:
        raise UserError("--materials_project needs mp-api: pip install mp-api") from error
    if not os.environ.get(KEY):
        raise UserError(f"--materials_project needs your key in ${KEY}; next-gen.materialsproject.org/api shows it")
    systems = [
        "-".join(system)
        for size in range(1, len(elements) + 1)
        for system in itertools.combinations(sorted(elements), size)
    ]
    try:
        with MPRester(os.environ[KEY]) as client:
            documents = client.materials.summary.search(
                chemsys=systems, energy_above_hull=(0, max_e_above_hull), fields=["material_id", "structure"]
            )
    except Exception as error:  # the client raises many types of errors: network, key, server
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the Materials Project does not answer: {reason}") from error
    return [entry_of_structure(each.structure, name=str(each.material_id)) for each in documents]
