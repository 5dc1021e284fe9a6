"""Reads parts of tensors from safetensors files, with or without an index, and writes tensors one after the other."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from crystal_jax.checkpoint.tensors import Shape
from crystal_jax.errors import UserError
from crystal_jax.json_files import describe, read_object
from crystal_jax.storage.files import write_text

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # largest shard of transformers
_CODES: Mapping[np.dtype, str] = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
}


# Types that NumPy supports. Others, such as 8-bit floats, belong to quantised models with separate scales.
_READABLE = ("F64", *_CODES.values())


class Entry(NamedTuple):
    """Shape and type of a tensor, as in a file's header."""

    shape: Shape
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shards:
    """Tensors of a folder, found in the files themselves; an index must agree with them.

    If a folder has `model.safetensors`, that file is read, as in transformers, and an index in the folder is ignored.

    Args:
        directory: the folder.
        ignored: suffixes of tensor names to skip.

    Raises:
        UserError: files are missing or damaged, the index is wrong, or a data type is not supported.
    """

    def __init__(self, directory: Path, *, ignored: tuple[str, ...] = ()):
        self._files = _tensor_files(directory, ignored)

    def shapes(self) -> dict[str, Shape]:
        """Returns the shapes of all tensors by name."""
        shapes = {}
        for name, file in self._files.items():
            with _open(file) as tensors:
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
        return shapes

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor."""
        with _open(self._files[name]) as tensors:
            return tensors.get_tensor(name)

    def read_part(self, name: str, *where: slice) -> np.ndarray:
        """Reads a rectangle of a tensor, without reading the rest of the tensor."""
        with _open(self._files[name]) as tensors:
            return tensors.get_slice(name)[where]


def write_shards(
    directory: Path,
    entries: Mapping[str, Entry],
    tensors: Iterator[tuple[str, np.ndarray]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a stream of tensors to one or several files.

    Args:
        directory: output folder; created if it does not exist.
        entries: headers of all tensors, in the order of the stream.
        tensors: names and contents.
        shard_bytes: largest size of a file, unless it contains a single tensor.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards = list(_cut(entries, shard_bytes))
    where: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        _write_file(directory / file, {name: entries[name] for name in names}, tensors)
        where |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(entry.nbytes for entry in entries.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_text(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _cut(entries: Mapping[str, Entry], limit: int) -> Iterator[list[str]]:
    """Yields consecutive names whose tensors fit a shard together; a larger tensor has a shard of its own."""
    names: list[str] = []
    held = 0
    for name, entry in entries.items():
        if names and held + entry.nbytes > limit:
            yield names
            names, held = [], 0
        names.append(name)
        held += entry.nbytes
    yield names


def _write_file(path: Path, entries: Mapping[str, Entry], tensors: Iterator[tuple[str, np.ndarray]]) -> None:
    """Writes a file with the next tensors of a stream; the package's own writer needs all of them in memory at once.

    The format is the length of a header as 8 bytes, the header in JSON, and the tensors' bytes, little-endian.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + entry.nbytes
        header[name] = {"dtype": _CODES[entry.dtype], "shape": entry.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in entries.items():
            found, tensor = next(tensors)
            assert (found, tensor.shape, tensor.dtype) == (name, *entry), f"{found} came where {name} was due"
            np.ascontiguousarray(tensor).view(np.uint8).tofile(file)


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a safetensors file.

    Raises:
        UserError: the file is missing or damaged, or a data type is not supported.
    """
    with _open(file) as tensors:
        return {name: tensors.get_tensor(name) for name in _names(file, tensors)}


def _tensor_files(directory: Path, ignored: tuple[str, ...]) -> dict[str, Path]:
    """Returns the file of each tensor, by name."""
    stated = None
    if (directory / SINGLE).is_file():
        if (directory / INDEX).is_file():
            print(
                f"{directory}: {SINGLE} is read; {INDEX} and its shards are passed over, as in transformers",
                file=sys.stderr,
            )
        files = [directory / SINGLE]
    elif (directory / INDEX).is_file():
        stated = _read_index(directory / INDEX)
        files = [directory / file for file in sorted(set(stated.values()))]
    else:
        raise UserError(f"{directory} has neither {SINGLE} nor {INDEX}")
    found: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{directory / INDEX} names {file.name}, which is missing")
        with _open(file) as tensors:
            for name in _names(file, tensors):
                if name.endswith(ignored):
                    continue
                if name in found:
                    raise UserError(f"{directory}: tensor {name} is in {found[name].name} and in {file.name}")
                found[name] = file
    for name, shard in (stated or {}).items():
        if not name.endswith(ignored) and (name not in found or found[name].name != shard):
            raise UserError(f"{directory / INDEX} places tensor {name} in {shard}, which does not hold it")
    return found


def _read_index(path: Path) -> dict[str, str]:
    """Reads the file name of each tensor from the index."""
    stated = read_object(path).part("weight_map")
    found = {name: stated.text(name) for name in stated}
    if not found:
        raise stated.error("weight_map is empty")
    for file in set(found.values()):
        if Path(file).name != file:
            raise stated.error(f"weight_map has {describe(file)}, which is no name of a file beside it")
    return found


def _names(file: Path, tensors: Any) -> list[str]:
    """Returns the names of the tensors in an open file, after checking their data types."""
    names = list(tensors.keys())
    for name in names:
        if (kind := tensors.get_slice(name).get_dtype()) not in _READABLE:
            raise UserError(
                f"{file}: tensor {name} has type {kind}, which is not read; types are {', '.join(_READABLE)}"
            )
    return names


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is no readable safetensors file: {' '.join(str(error).split())}") from error
