"""Converts records to batches of packed rows with Grain: shuffled in each epoch, augmented, resumable to the example.

The crystals are divided among `data.shards` streams. Each stream is packed on its own, and stream i provides the i-th
part of the rows of every batch. This fixes the global batch for any number of processes: a process runs the streams
whose rows are on its devices. A data position consists of one state per stream, which any process of another run can
restore.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from crystal_jax.config import DataConfig
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import Record
from crystal_jax.errors import RequestError, UserError

Batch = dict[str, np.ndarray]


def fitting(records: Sequence[Record], maker: ExampleMaker, *, seq_len: int) -> tuple[list[Record], list[str]]:
    """Reads all records into memory and separates those that cannot be trained on.

    MP-20 has 27,136 crystals of a few hundred bytes each, so keeping them in memory is cheaper than reading them again
    in each epoch.

    Returns:
        The records whose longest example fits a row, and for each other record a line with the reason.

    Raises:
        UserError: no record fits.
    """
    kept, left_out = [], []
    for record in records:
        try:
            length = max(len(maker(record, rng)["tokens"]) for rng in _probes())
        except RequestError as error:
            left_out.append(f"{record.material_id} {record.formula}: {error}")
            continue
        if length <= seq_len:
            kept.append(record)
        else:
            left_out.append(f"{record.material_id} {record.formula}: {length} tokens, seq_len is {seq_len}")
    if not kept:
        raise UserError(f"none of {len(left_out)} crystals can be trained on; the first: {left_out[0]}")
    return kept, left_out


def _probes() -> Iterator[np.random.Generator]:
    """Returns generators that produce an example in several variants (task, conditions)."""
    return (np.random.default_rng(seed) for seed in range(8))


class BatchStream(Iterator[Batch]):
    """Endless iterator over batches; yields the rows that this process feeds, in order.

    A batch has, shaped [rows, seq_len]: `tokens`, `targets`, `weights` (see `ExampleMaker`), `positions` within the
    example, and `segments`, which number the examples of a row from 1; 0 is padding. `crystals`, [rows, seq_len / 2],
    lists the examples of a row in order, by the index of their record in `records`, from 1.

    Attributes:
        owned: streams whose position this process saves; each is saved by the first process that runs it.
    """

    def __init__(
        self,
        records: Sequence[Record],
        maker: ExampleMaker,
        cfg: DataConfig,
        *,
        rows: Sequence[Sequence[int]],
        process: int,
    ):
        self._shards, share = cfg.shards, cfg.batch_size // cfg.shards
        running = [sorted({row // share for row in theirs}) for theirs in rows]
        first = {shard: i for i, shards in reversed([*enumerate(running)]) for shard in shards}
        self.owned = tuple(shard for shard in running[process] if first[shard] == process)
        self._rows = np.flatnonzero(
            np.isin([shard * share + i for shard in running[process] for i in range(share)], rows[process])
        )
        # One global sequence of examples, dealt to the streams in turn: an example depends only on its index.
        examples = (
            grain.MapDataset.source(_Numbered(records))
            .seed(cfg.seed)
            .shuffle()
            .repeat()
            .random_map(_NumberedMaker(maker))
        )
        self._streams = {
            shard: iter(_packed(examples.slice(slice(shard, None, cfg.shards)), cfg, maker).batch(share))
            for shard in running[process]
        }

    def __next__(self) -> Batch:
        parts = [next(stream) for stream in self._streams.values()]
        return {name: np.concatenate([part[name] for part in parts])[self._rows] for name in parts[0]}

    def get_state(self) -> dict[str, Any]:
        """Returns the position of each stream of this process, by stream number, and the number of streams."""
        return {str(shard): stream.get_state() for shard, stream in self._streams.items()} | {"shards": self._shards}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a position; its parts may have been saved by other processes.

        Raises:
            UserError: the position has another number of streams.
        """
        if state["shards"] != self._shards:
            raise UserError(f"this run has data.shards={state['shards']}, not {self._shards}; keep it as it is")
        for shard, stream in self._streams.items():
            stream.set_state(state[str(shard)])


def train_batches(
    records: Sequence[Record],
    maker: ExampleMaker,
    cfg: DataConfig,
    *,
    rows: Sequence[Sequence[int]] | None = None,
    process: int = 0,
) -> BatchStream:
    """Returns the batches of a training run.

    Args:
        records: all records, on every process.
        maker: function from record to example.
        cfg: settings that define the global batches.
        rows: the rows of a global batch that each process feeds (`sharding.rows_by_process`); by default all.
        process: index of this process.
    """
    return BatchStream(records, maker, cfg, rows=rows or [range(cfg.batch_size)], process=process)


def validation_batches(
    records: Sequence[Record],
    maker: ExampleMaker,
    cfg: DataConfig,
    *,
    limit: int,
    rows: Sequence[int] | None = None,
) -> list[Batch]:
    """Returns the first `limit` batches of a fixed pass, the same at each validation, so that curves are comparable.

    Every process packs whole batches and keeps the `rows` that it feeds; by default all.
    """
    examples = grain.MapDataset.source(_Numbered(records)).seed(cfg.seed).random_map(_NumberedMaker(maker)).repeat()
    batches = iter(_packed(examples, cfg, maker).batch(cfg.batch_size))
    kept = slice(None) if rows is None else list(rows)
    return [{name: values[kept] for name, values in next(batches).items()} for _ in range(limit)]


@dataclasses.dataclass(frozen=True)
class _Numbered(Sequence[tuple[int, Record]]):
    """Records with their indices, so that an example can name its source."""

    records: Sequence[Record]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        return index, self.records[index]


@dataclasses.dataclass(frozen=True)
class _NumberedMaker:
    maker: ExampleMaker

    def __call__(self, numbered: tuple[int, Record], rng: np.random.Generator) -> Batch:
        index, record = numbered
        return self.maker(record, rng) | {"crystals": np.array([index + 1], np.int32)}


def _packed(examples: grain.MapDataset, cfg: DataConfig, maker: ExampleMaker) -> grain.IterDataset:
    lengths = dict.fromkeys(maker.features, cfg.seq_len)
    packed = grain.experimental.FirstFitPackIterDataset(
        # One thread reads ahead; more threads would take cores from the computation.
        examples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=128)),
        # An example has at least two tokens, so the length of `crystals` never limits the packing.
        length_struct=lengths | {"crystals": max(cfg.seq_len // 2, 1)},
        num_packing_bins=cfg.packing_bins,
        seed=cfg.seed,
    )
    return packed.map(functools.partial(_named, features=(*maker.features, "crystals")))


def _named(row: Batch, features: Sequence[str]) -> Batch:
    """Keeps one copy of segment ids and positions, which Grain writes for each feature."""
    kept = {name: row[name] for name in features}
    return kept | {"positions": row["tokens_positions"], "segments": row["tokens_segment_ids"]}
