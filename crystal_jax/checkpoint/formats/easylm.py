"""Reads and writes EasyLM's streaming checkpoints, and reads the weights in its train-state files.

The file is a sequence of MessagePack records, [key, blob], without header or footer. The key is a list of path
components. The blob is again MessagePack, Flax's serialisation of an array: an extension of type 1 with [shape, dtype,
bytes], or a map of such chunks if the array is too large for one. Kernels are [inputs, outputs], and rows of q and k
are in Meta's order.
"""

from __future__ import annotations

import math
import mmap
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgpack
import numpy as np

from crystal_jax.checkpoint.formats.hf import DTYPES
from crystal_jax.checkpoint.tensors import Shape, Source, check, heads_of, permute, unpermute
from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError

CHUNK_BYTES = 2**30  # Flax splits larger arrays into chunks

_EMBEDDING, _HEAD = "transformer/wte/embedding", "lm_head/kernel"
_BLOCK = {  # EasyLM's order
    "attention/wq": "self_attn.q_proj",
    "attention/wk": "self_attn.k_proj",
    "attention/wv": "self_attn.v_proj",
    "attention/wo": "self_attn.o_proj",
    "feed_forward/w1": "mlp.gate_proj",
    "feed_forward/w2": "mlp.down_proj",
    "feed_forward/w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY = 1
_WINDOW = 4096  # bytes; a key or an array's header is shorter
_OBJECT = msgpack.Unpacker.unpack
_ARRAY_LENGTH, _MAP_LENGTH = msgpack.Unpacker.read_array_header, msgpack.Unpacker.read_map_header
WEIGHTS, _NOT_WEIGHTS = "params/params/", ("step", "opt_state/")  # in a train state
T = TypeVar("T")


def tensor_names(cfg: LlamaConfig) -> dict[str, str]:
    """Returns Hugging Face's tensor names by EasyLM's, in the order in which EasyLM writes them."""
    names = {_EMBEDDING: "model.embed_tokens.weight", "transformer/ln_f/kernel": "model.norm.weight"}
    for i in range(cfg.num_layers):
        names |= {f"transformer/h/{i}/{ours}/kernel": f"model.layers.{i}.{hf}.weight" for ours, hf in _BLOCK.items()}
    return names | {_HEAD: "lm_head.weight"}


class EasyLmSource:
    """`streaming_params` or `streaming_train_state` file; the optimizer state in the latter is skipped.

    EasyLM does not tie embeddings: for a tied model it stores both tensors, which must then be equal.

    Args:
        path: the file.
        config: the architecture, which the file does not state.

    Raises:
        UserError: the file is missing or damaged, or contains a tensor twice.
    """

    def __init__(self, path: Path, config: LlamaConfig):
        self.path, self.config = path, config
        self._names = tensor_names(config)
        self._keys = {hf: key for key, hf in self._names.items()}
        self._buffer = _map(path)
        self._stored: dict[str, _Stored] = {}
        for key, stored in _index(path, self._buffer):
            if key in self._stored:
                raise UserError(f"{path} has tensor {key} twice")
            self._stored[key] = stored
        if config.tie_embeddings and _HEAD not in self._stored:
            raise UserError(f"{path} lacks tensor {_HEAD}, which EasyLM writes for tied embeddings, too")

    def shapes(self) -> dict[str, Shape]:
        return {
            self._names.get(key, key): stored.shape if key == _EMBEDDING else stored.shape[::-1]
            for key, stored in self._stored.items()
            if not (self.config.tie_embeddings and key == _HEAD)
        }

    def read(self, name: str) -> np.ndarray:
        try:
            return self._copy(name)
        finally:
            self._buffer.madvise(mmap.MADV_DONTNEED)  # otherwise the pages stay in memory as long as the map exists

    def _copy(self, name: str) -> np.ndarray:
        key = self._keys[name]
        tensor = self._array(key)
        if key == _EMBEDDING:
            if self.config.tie_embeddings and not np.array_equal(tensor, self._array(_HEAD).T):
                raise UserError(f"{self.path}: {_HEAD} differs from the embedding; the model is not tied")
            return np.array(tensor)
        heads = heads_of(name, self.config)
        return permute(tensor.T, heads) if heads else np.array(tensor.T, order="C")

    def _array(self, key: str) -> np.ndarray:
        """Returns a tensor as stored; a view of the file if it has a single chunk."""
        shape, dtype, pieces = self._stored[key]
        arrays = [np.frombuffer(self._buffer, dtype, size, offset) for offset, size in pieces]
        return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)).reshape(shape)


def write_easylm(path: Path, source: Source, *, dtype: np.dtype | None = None) -> None:
    """Writes a `streaming_params` file, byte for byte as EasyLM writes it, cast to `dtype` if given.

    Raises:
        UserError: the source lacks a tensor or has one of another shape, or the file cannot be written.
    """
    check(source.path, source.shapes(), source.config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            partial = Path(folder) / path.name
            with partial.open("wb") as file:
                for key, name in tensor_names(source.config).items():
                    tensor = _in_easylm_order(source, name)
                    blob = msgpack.packb(_packable(tensor if dtype is None else tensor.astype(dtype, copy=False)))
                    file.write(msgpack.packb((key.split("/"), blob)))
            partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def _in_easylm_order(source: Source, name: str) -> np.ndarray:
    if name == "model.embed_tokens.weight":
        return source.read(name)
    if name == "lm_head.weight" and source.config.tie_embeddings:
        return source.read("model.embed_tokens.weight").T
    tensor = source.read(name)
    heads = heads_of(name, source.config)
    return (unpermute(tensor, heads) if heads else tensor).T


def _packable(array: np.ndarray) -> Any:
    """Returns Flax's serialisation of an array."""
    if array.nbytes <= CHUNK_BYTES:
        return msgpack.ExtType(_NDARRAY, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))
    flat, step = array.reshape(-1), max(1, CHUNK_BYTES // array.itemsize)
    chunks = (flat[start : start + step] for start in range(0, flat.size, step))
    return {
        _CHUNKED: True,
        "shape": {str(axis): size for axis, size in enumerate(array.shape)},
        "chunks": {str(i): _packable(chunk) for i, chunk in enumerate(chunks)},
    }


class _Stored(NamedTuple):
    """Location of a tensor: `pieces` are (offset in bytes, number of elements) of consecutive parts of the flattened
    array.
    """

    shape: Shape
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]


def _map(path: Path) -> mmap.mmap:
    """Maps the file into memory; only the bytes that are accessed are loaded."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        raise UserError(f"{path} is empty") from None


def _index(path: Path, buffer: mmap.mmap) -> Iterator[tuple[str, _Stored]]:
    """Yields the name and location of each weight, without loading it."""
    cursor = _Cursor(buffer)
    try:
        while cursor.at < len(buffer):
            cursor.expect(cursor.take(_ARRAY_LENGTH) == 2, "a record is no pair")
            name = "/".join(cursor.take(_OBJECT))
            end = cursor.binary()
            if not name.startswith(_NOT_WEIGHTS):
                yield name.removeprefix(WEIGHTS), _stored(cursor)
                cursor.expect(cursor.at == end, f"{name} is shorter than its record")
            cursor.at = end
    except (ValueError, TypeError, LookupError, struct.error, msgpack.UnpackException) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is no EasyLM checkpoint, or damaged at byte {cursor.at}: {reason}") from error


def _stored(cursor: _Cursor) -> _Stored:
    if cursor.buffer[cursor.at] in _EXTENSION:
        shape, dtype, piece = _piece(cursor)
        return _Stored(shape, dtype, (piece,))
    entries = cursor.take(_MAP_LENGTH)
    head = {cursor.take(_OBJECT): cursor.take(_OBJECT) for _ in range(entries - 1)}
    cursor.expect(head.get(_CHUNKED) is True and cursor.take(_OBJECT) == "chunks", "not an array")
    shape = tuple(head["shape"][str(axis)] for axis in range(len(head["shape"])))
    chunks = []
    for i in range(cursor.take(_MAP_LENGTH)):
        cursor.expect(cursor.take(_OBJECT) == str(i), f"chunk {i} is missing")
        chunks.append(_piece(cursor))
    _, dtypes, pieces = zip(*chunks, strict=True)
    cursor.expect(len(set(dtypes)) == 1, "chunks of different types")
    cursor.expect(sum(size for _, size in pieces) == math.prod(shape), "the chunks do not add up to the shape")
    return _Stored(shape, dtypes[0], pieces)


def _piece(cursor: _Cursor) -> tuple[Shape, np.dtype, tuple[int, int]]:
    """Returns shape, type and location of the array at the cursor, and moves the cursor behind it."""
    end = cursor.array()
    cursor.expect(cursor.take(_ARRAY_LENGTH) == 3, "not an array")
    shape, name = tuple(cursor.take(_OBJECT)), cursor.take(_OBJECT)
    cursor.expect(name in DTYPES, f"type {name}; weights are {', '.join(DTYPES)}")
    dtype, size = DTYPES[name], math.prod(shape)
    last = cursor.binary()
    cursor.expect(last == end == cursor.at + size * dtype.itemsize, f"not {size} elements of {name}")
    piece = (cursor.at, size)
    cursor.at = end
    return shape, dtype, piece


# Headers by first byte, from the MessagePack specification: a bin has its length, an extension its length and type,
# and fixext 16 only its type. No array is small enough for a shorter fixext.
_BINARY = {0xC4: ">xB", 0xC5: ">xH", 0xC6: ">xI"}
_EXTENSION = {0xC7: ">xBB", 0xC8: ">xHB", 0xC9: ">xIB", 0xD8: ">xB"}


class _Cursor:
    """Position in MessagePack data: small objects are decoded, large ones only measured."""

    def __init__(self, buffer: mmap.mmap):
        self.buffer, self.at = buffer, 0

    def take(self, decode: Callable[[msgpack.Unpacker], T]) -> T:
        """Decodes the small object, or the header of a collection, at the cursor, and moves the cursor behind it."""
        unpacker = msgpack.Unpacker()
        unpacker.feed(self.buffer[self.at : self.at + _WINDOW])
        value = decode(unpacker)
        self.at += unpacker.tell()
        return value

    def binary(self) -> int:
        """Returns the end of the bin at the cursor, and moves the cursor to its first byte."""
        (length,) = self._head(_BINARY)
        return self._end(length)

    def array(self) -> int:
        """Returns the end of the Flax array at the cursor, and moves the cursor to its first byte."""
        *length, kind = self._head(_EXTENSION)
        self.expect(kind == _NDARRAY, f"extension of type {kind}, not an array")
        return self._end(*(length or (16,)))

    def _head(self, formats: Mapping[int, str]) -> tuple[int, ...]:
        first = self.buffer[self.at]
        self.expect(first in formats, "not an array")
        fields = struct.unpack_from(formats[first], self.buffer, self.at)
        self.at += struct.calcsize(formats[first])
        return fields

    def _end(self, length: int) -> int:
        missing = self.at + length - len(self.buffer)
        self.expect(missing <= 0, f"{missing} bytes are missing at the end")
        return self.at + length

    @staticmethod
    def expect(condition: bool, message: str) -> None:
        """Raises ValueError, which means a damaged file, if the condition is false."""
        if not condition:
            raise ValueError(message)
