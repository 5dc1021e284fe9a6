"""Reads a TensorFlow V2 checkpoint without TensorFlow: names, shapes and numbers. It runs no code of the checkpoint.

`NAME.index` is a LevelDB table (github.com/google/leveldb, doc/table_format.md) from variable names to protocol buffers
`BundleEntryProto` (tensorflow/core/protobuf/tensor_bundle.proto). `NAME.data-00000-of-00001` contains the tensors'
bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from crystal_jax.errors import UserError

_MAGIC = 0xDB4775248B80FB57  # the last 8 bytes of a LevelDB table
_FOOTER = 48  # bytes: two block handles, padding, the magic number
_FLOAT32 = 1  # DT_FLOAT in TensorFlow's DataType; all weights have it
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"  # suffix of variable names


def read_checkpoint(prefix: Path) -> dict[str, np.ndarray]:
    """Returns float32 arrays by variable name, without the names' common suffix; bookkeeping entries are skipped.

    Args:
        prefix: path and name of the checkpoint, without `.index`.

    Raises:
        UserError: a file is missing, or is not a TensorFlow checkpoint.
    """
    index, data = (prefix.with_name(prefix.name + end) for end in (".index", ".data-00000-of-00001"))
    try:
        table, numbers = index.read_bytes(), data.read_bytes()
        found = {}
        for key, value in _entries(table):
            if key.endswith(_VALUE.encode()):
                kind, shape, offset, size = _bundle_entry(value)
                if kind == _FLOAT32:
                    array = np.frombuffer(numbers[offset : offset + size], "<f4").reshape(shape)
                    found[key.decode().removesuffix(_VALUE)] = array
        return found
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {prefix}: {error.strerror} ({error.filename})") from error
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"{index} is no TensorFlow checkpoint, or is damaged ({error}); fetch it again") from error


def _entries(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yields the keys and values of the table, block by block."""
    if len(table) < _FOOTER or struct.unpack("<Q", table[-8:])[0] != _MAGIC:
        raise ValueError("no LevelDB table")
    position = len(table) - _FOOTER
    for _ in range(2):  # skip the handle of the meta index, which is not needed
        _, position = _varint(table, position)
    offset, position = _varint(table, position)
    size, _ = _varint(table, position)
    for _, handle in _block(table, offset, size):
        begin, position = _varint(handle, 0)
        length, _ = _varint(handle, position)
        yield from _block(table, begin, length)


def _block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields the entries of a block. Each key is stored as the length shared with the previous key, and the rest."""
    if table[offset + size]:
        raise ValueError("compressed blocks are not expected")
    block = table[offset : offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    position, end, key = 0, size - 4 * (restarts + 1), b""
    while position < end:
        shared, position = _varint(block, position)
        rest, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + rest]
        position += rest
        yield key, block[position : position + length]
        position += length


def _bundle_entry(message: bytes) -> tuple[int, tuple[int, ...], int, int]:
    """Returns data type, shape, offset and size in bytes."""
    numbers = {1: 0, 4: 0, 5: 0}  # dtype, offset, size
    shape: tuple[int, ...] = ()
    for field, value in _fields(message):
        if field == 2 and isinstance(value, bytes):
            dimensions = [dict(_fields(d)) for f, d in _fields(value) if f == 2 and isinstance(d, bytes)]
            shape = tuple(int(dimension.get(1, 0)) for dimension in dimensions)
        elif field in numbers and isinstance(value, int):
            numbers[field] = value
    return numbers[1], shape, numbers[4], numbers[5]


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields field numbers and values of a protocol buffer."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield field, value
        elif wire == 2:
            length, position = _varint(message, position)
            yield field, message[position : position + length]
            position += length
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} in a protocol buffer")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Decodes a varint (7 bits per byte); returns its value and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position += 1
        if byte < 128:
            return value, position
        shift += 7
