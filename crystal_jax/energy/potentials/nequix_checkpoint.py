"""Reads Nequix's checkpoints: a line of JSON with the settings, then arrays in NumPy's format, one after another.

Nothing is unpickled. The arrays have no names; their order is that of the network's parameters. After them, the file
repeats the numbers among the settings, as arrays without axes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from crystal_jax.errors import UserError
from crystal_jax.json_files import JsonObject, parse_json, stored_bytes


class Checkpoint(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        settings: the settings of the network and of its training.
        arrays: the parameters.
    """

    settings: JsonObject
    arrays: list[np.ndarray]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        UserError: the file is missing or damaged.
    """
    line, _, rest = stored_bytes(path).partition(b"\n")
    settings = JsonObject.of(parse_json(line.decode(errors="replace"), path), path)
    file = io.BytesIO(rest)
    arrays = []
    try:
        while file.tell() < len(rest):
            arrays.append(np.lib.format.read_array(file, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return Checkpoint(settings, [array for array in arrays if array.ndim])
