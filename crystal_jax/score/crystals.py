"""Reads crystals from files and writes them in the text format of a model."""

from __future__ import annotations

import numpy as np

from crystal_jax.config import Experiment
from crystal_jax.errors import RequestError
from crystal_jax.structures import Entry, parse
from crystal_jax.text.crystal_text import Crystal


def crystal_of(entry: Entry) -> Crystal:
    """Returns the crystal of an entry, with its sites in pymatgen's order, as in the data sets.

    Raises:
        RequestError: the entry holds no ordered crystal of elements; the message is one line.
    """
    sample = parse(entry)
    if sample.structure is None:
        raise RequestError(sample.failure)
    lattice = sample.structure.lattice
    symbols = tuple(site.specie.symbol for site in sample.structure)
    return Crystal(np.array(lattice.abc), np.array(lattice.angles), sample.structure.frac_coords, symbols)


def spelled(crystal: Crystal, experiment: Experiment) -> str:
    """Returns the text of a crystal, with its sites sorted if the model was trained on sorted sites.

    Raises:
        CrystalTextError: the text format cannot express the crystal.
    """
    if experiment.task.order == "sorted":
        crystal = experiment.text.sorted(crystal)
    text = experiment.text.encode(crystal)
    experiment.text.decode(text)  # raises for an element after lawrencium, or an angle that rounds to 0
    return text
