"""Reads the tensors of CDVAE, DiffCSP and FlowMM (`eval_gen_*.pt`, `eval_diff_*.pt`) without running code in them."""

from __future__ import annotations

import argparse
import codecs
import importlib
import math
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice

from crystal_jax.errors import UserError
from crystal_jax.structures.build import entry_of, formula_of
from crystal_jax.structures.entry import Entry
from crystal_jax.structures.formats.cif import one_line
from crystal_jax.structures.lattice import cell_fault
from crystal_jax.suppress_warnings import quiet

_CELLS = ("lengths", "angles")
_NAMES = ("frac_coords", "atom_types", "num_atoms", *_CELLS)
_LAST = 118  # largest atomic number


@quiet()
def read_tensors(path: Path) -> list[Entry]:
    """Returns the crystals of a file; the entries have no names.

    If the first axis of the tensors is one of several repetitions, each entry's `request` is the index of its crystal
    within a repetition. Lattices are given as `lengths` (Å) and `angles` (degrees), or as `lattices` (vectors in Å, as
    rows).

    The file is a pickle. Only tensors, arrays and plain values are read. Other objects (the torch_geometric batch in
    DiffCSP's files) are replaced by objects without behaviour, and none of their classes or functions is called.

    Raises:
        UserError: PyTorch is missing, or the file has another content.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading it needs PyTorch: pip install torch --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    others: list[str] = []
    try:
        others = _classes_in(path)
        allowed = [argparse.Namespace, *_numpy_types(), *(_known(name) or (_stand_in(name), name) for name in others)]
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
        return list(_entries(_arrays(found)))
    except Exception as error:  # damaged and other files raise many types of errors
        held = [name for name in others if _known(name) is None]
        raise UserError(
            f"{path}: not the tensors {', '.join(_NAMES)} of generated crystals: {_reason(error)}"
            + (f"; it also holds {', '.join(sorted(held)[:3])}" if held else "")
            + "; save a dictionary of these tensors alone"
        ) from error


class _StandIn:
    """Replaces an object of another library: accepts any arguments, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _StandIn:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        # PyTorch calls only objects equal to an allowed class, and a stand-in may replace a function.
        return other is type(self)

    def __hash__(self) -> int:
        return hash(type(self))


def _stand_in(name: str) -> type[_StandIn]:
    return type(name.rpartition(".")[2], (_StandIn,), {})


def _classes_in(path: Path) -> list[str]:
    """Returns full names of the classes and functions in a file that PyTorch does not accept as plain data."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    if not zipfile.is_zipfile(path):  # the format of PyTorch before version 1.6
        return []
    return [name for name in get_unsafe_globals_in_checkpoint(path) if name != "argparse.Namespace"]


def _known(name: str) -> tuple[Any, str] | None:
    """Returns NumPy's function or class of this name if it only rebuilds arrays of plain values."""
    if name == "_codecs.encode":
        return codecs.encode, name
    if re.fullmatch(r"numpy(\.core|\._core)\.multiarray\.(_reconstruct|scalar)", name):
        return getattr(importlib.import_module("numpy._core.multiarray"), name.rpartition(".")[2]), name
    return {"numpy.ndarray": (np.ndarray, name), "numpy.dtype": (np.dtype, name)}.get(name)


def _numpy_types() -> list[Any]:
    return [kind for kind in vars(np.dtypes).values() if isinstance(kind, type)]


def _arrays(found: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of a file: those of `_NAMES`, or `lattices` in place of `lengths` and `angles`.

    Raises:
        ValueError: an array is missing, or is not numeric.
    """
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__}, not a dictionary")
    names = [name for name in _NAMES if name not in _CELLS]
    names += ["lattices"] if "lattices" in found and not all(name in found for name in _CELLS) else _CELLS
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"it has no {', '.join(missing)}")
    arrays = {name: np.asarray(found[name]) for name in names}
    if odd := [name for name, array in arrays.items() if array.dtype.kind not in "iuf"]:
        raise ValueError(f"{odd[0]} holds no numbers")
    return arrays


def _entries(arrays: dict[str, np.ndarray]) -> Iterator[Entry]:
    counts = arrays["num_atoms"]
    crystals = counts.shape[-1] if counts.ndim == 2 and len(counts) > 1 else None  # per repetition, if several
    counts = counts.reshape(-1).astype(int)
    frac = arrays["frac_coords"].reshape(-1, 3).astype(float)
    kinds = arrays["atom_types"]
    if kinds.size > counts.sum():  # a row of scores per atom
        kinds = kinds.reshape(-1, kinds.shape[-1]).argmax(axis=1) + 1
    kinds = kinds.reshape(-1).astype(int)
    lattices = _lattices(arrays)
    if len(counts) != len(lattices) or not counts.sum() == len(frac) == len(kinds) or (counts < 0).any():
        raise ValueError("their sizes do not fit together")
    for i, end in enumerate(np.cumsum(counts)):
        atoms = slice(end - counts[i], end)
        request = None if crystals is None else i % crystals
        yield _entry(lattices[i], kinds[atoms], frac[atoms], request)


def _lattices(arrays: dict[str, np.ndarray]) -> list[np.ndarray | str]:
    """Returns the vectors of each lattice, or the reason why it has none."""
    if "lattices" in arrays:
        return list(arrays["lattices"].reshape(-1, 3, 3).astype(float))
    lengths, angles = (arrays[name].reshape(-1, 3).astype(float) for name in _CELLS)
    if len(lengths) != len(angles):
        raise ValueError("their sizes do not fit together")
    if angles.size and (abs(angles) <= math.pi).all():
        raise ValueError("its angles are in radians, and degrees are read")
    return [
        cell_fault(one, other) or Lattice.from_parameters(*one, *other).matrix
        for one, other in zip(lengths, angles, strict=True)
    ]


def _entry(lattice: np.ndarray | str, numbers: np.ndarray, frac: np.ndarray, request: int | None) -> Entry:
    if any(not 1 <= number <= _LAST for number in numbers):
        return Entry("", "", fault="an atom is of no element", request=request)
    elements = [Element.from_Z(int(number)) for number in numbers]
    if isinstance(lattice, str):
        return Entry("", "", formula=formula_of(elements), fault=lattice, request=request)
    return entry_of(lattice, [element.symbol for element in elements], frac, request=request)


def _reason(error: Exception) -> str:
    """Returns the error in one line; PyTorch's errors have terminal codes and pages of advice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", one_line(error))
    return "PyTorch cannot read it as plain data" if "weights_only" in text or "Weights only" in text else text[:200]
