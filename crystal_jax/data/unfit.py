"""Lists the crystals of a prepared data set that are too large to learn from, or that no text can express."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from crystal_jax.config import TaskConfig
from crystal_jax.data import mp20
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import Record
from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.tokenizer import load_tokenizer
from tfds_mp20.user_files import MAX_ATOMS


def unfit(directory: Path) -> list[str]:
    """Returns a line with the reason for each crystal that a model of this project cannot learn as it is.

    These are crystals with more atoms than samples may have, and crystals that the default text format and tokenizer
    cannot express. (Training itself lists what its own text format, tokenizer and `data.seq_len` leave out.)

    Raises:
        UserError: the directory is not a prepared data set.
    """
    task = TaskConfig(infill=0.0, conditions=False, translate=False, order="stored", loss="completion")
    maker = ExampleMaker(load_tokenizer("atom_coordinate"), TextFormat(), task)
    splits = (mp20.open_split(directory, split) for split in mp20.dataset_info(directory).rows)
    return [
        f"{record.material_id} ({record.formula}): {reason}"
        for records in splits
        for record in records
        if (reason := _reason(record, maker))
    ]


def _reason(record: Record, maker: ExampleMaker) -> str | None:
    if len(record.atomic_numbers) > MAX_ATOMS:
        return f"{len(record.atomic_numbers)} atoms in the cell, and samples have at most {MAX_ATOMS}"
    try:
        maker(record, np.random.default_rng(0))
    except RequestError as error:
        return str(error)
    return None
