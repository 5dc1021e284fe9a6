"""Crystals that other programs wrote not as CIF: extended XYZ, and the tensors of CDVAE and DiffCSP.

Each crystal becomes CIF text, as everything else here works with; what forms no crystal becomes an empty text and keeps
its place.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element, Lattice, Structure
from pymatgen.io.cif import CifWriter

from crystal_jax.errors import UserError
from crystal_jax.quiet import quiet

_TENSORS = ("frac_coords", "atom_types", "lengths", "angles", "num_atoms")


@quiet()
def read_extxyz(path: Path) -> list[tuple[str, str, str]]:
    """Names (empty where the file gives none), CIF texts and formulas of the frames of an extended XYZ file.

    A frame without a cell in three dimensions has no CIF.

    Raises:
        UserError: it is no such file.
    """
    from ase.io import read  # here, because only this case needs ASE

    try:
        frames: Any = read(path, index=":", format="extxyz")
    except Exception as error:  # its reader raises nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a readable extended XYZ file: {reason}") from error
    rows = []
    for frame in frames:
        numbers = frame.get_atomic_numbers()
        cif = ""
        if frame.cell.rank == 3 and frame.pbc.all():
            cif = _cif(Lattice(frame.cell.array), numbers, frame.get_scaled_positions(wrap=False))
        name = next((str(frame.info[key]) for key in ("name", "material_id", "mat_id") if key in frame.info), "")
        rows.append((name, cif, _formula(numbers)))
    return rows


@quiet()
def read_tensors(path: Path) -> list[tuple[str, str, str]]:
    """The same of CDVAE's `eval_gen_*.pt` (or DiffCSP's), which gives no names.

    Only tensors and plain values are read, never code: the file is a pickle.

    Raises:
        UserError: PyTorch is missing, or it is no such file.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading it needs PyTorch: pip install torch --index-url https://download.pytorch.org/whl/cpu"
        ) from error
    try:
        # CDVAE stores its command line as a Namespace, which holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
        arrays = {name: np.asarray(found[name]) for name in _TENSORS}
        return _split(arrays)
    except Exception as error:  # a damaged or another file raises nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not the tensors {', '.join(_TENSORS)} of generated crystals ({reason})") from error


def _split(arrays: dict[str, np.ndarray]) -> list[tuple[str, str, str]]:
    """Crystals of tensors that run over all atoms; CDVAE's have a first axis of repetitions."""
    counts = arrays["num_atoms"].reshape(-1).astype(int)
    frac = arrays["frac_coords"].reshape(-1, 3).astype(float)
    lengths, angles = (arrays[name].reshape(-1, 3).astype(float) for name in ("lengths", "angles"))
    kinds = arrays["atom_types"]
    if kinds.size > counts.sum():  # one row of scores an atom
        kinds = kinds.reshape(-1, kinds.shape[-1]).argmax(axis=1) + 1
    kinds = kinds.reshape(-1).astype(int)
    if not len(counts) == len(lengths) == len(angles) or not counts.sum() == len(frac) == len(kinds):
        raise ValueError("their sizes do not fit together")
    rows = []
    for i, end in enumerate(np.cumsum(counts)):
        atoms = slice(end - counts[i], end)
        try:
            lattice = Lattice.from_parameters(*lengths[i], *angles[i])
            cif = _cif(lattice, kinds[atoms], frac[atoms])
        except (ValueError, ArithmeticError):
            cif = ""
        rows.append(("", cif, _formula(kinds[atoms])))
    return rows


def _cif(lattice: Lattice, numbers: Sequence[int] | np.ndarray, frac: np.ndarray) -> str:
    """Empty where the numbers are none of elements or of a crystal."""
    try:
        species = [Element.from_Z(int(z)) for z in numbers]
        return str(CifWriter(Structure(lattice, species, frac))) if np.isfinite(frac).all() else ""
    except (ValueError, ArithmeticError, np.linalg.LinAlgError):
        return ""


def _formula(numbers: Sequence[int] | np.ndarray) -> str:
    try:
        return Composition(Counter(Element.from_Z(int(z)).symbol for z in numbers)).formula
    except ValueError:
        return ""
