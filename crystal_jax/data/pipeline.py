"""Records → batches of packed rows, with Grain: shuffled anew each epoch, augmented, resumable to the example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np

from crystal_jax.config import DataConfig
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import Record
from crystal_jax.errors import UserError

Batch = dict[str, np.ndarray]


def fitting(records: Sequence[Record], maker: ExampleMaker, *, seq_len: int) -> tuple[list[Record], list[str]]:
    """Reads all records into memory and sorts out those that cannot be trained on.

    MP-20 is 27,136 crystals of a few hundred bytes: memory is cheaper than reading them again in each epoch.

    Returns:
        The records whose longest example fits a row, and for each other one a line that says why not.

    Raises:
        UserError: none fits.
    """
    kept, left_out = [], []
    for record in records:
        try:
            length = max(len(maker(record, rng)["tokens"]) for rng in _probes())
        except ValueError as error:
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
    """Generators under which an example comes out in several of its forms (task, conditions)."""
    return (np.random.default_rng(seed) for seed in range(8))


def train_batches(records: Sequence[Record], maker: ExampleMaker, cfg: DataConfig) -> grain.DatasetIterator:
    """Endless batches of the rows that this host feeds.

    Each batch has, shaped [batch_size / hosts, seq_len]: `tokens`, `targets`, `weights` (see `ExampleMaker`),
    `positions` within the example, and `segments`, which number the examples of a row from 1; 0 is padding.

    Raises:
        UserError: the batch does not divide over the hosts.
    """
    hosts = jax.process_count()
    if cfg.batch_size % hosts:
        raise UserError(f"data.batch_size={cfg.batch_size} does not divide over {hosts} hosts")
    examples = (
        grain.MapDataset.source(records)
        .seed(cfg.seed)
        .shuffle()
        .slice(slice(jax.process_index(), None, hosts))
        .repeat()
        .random_map(maker)
    )
    return iter(_packed_batches(examples, cfg, cfg.batch_size // hosts))


def validation_batches(records: Sequence[Record], maker: ExampleMaker, cfg: DataConfig, *, limit: int) -> list[Batch]:
    """The first `limit` batches of one fixed pass, the same at each validation: curves are comparable.

    Raises:
        UserError: there are too few records for one batch.
    """
    examples = grain.MapDataset.source(records).seed(cfg.seed).random_map(maker).repeat()
    batches = iter(_packed_batches(examples, cfg, cfg.batch_size // jax.process_count()))
    return [next(batches) for _ in range(limit)]


def _packed_batches(examples: grain.MapDataset, cfg: DataConfig, rows: int) -> grain.IterDataset:
    packed = grain.experimental.FirstFitPackIterDataset(
        # One thread reads ahead: more would only take the cores from the computation.
        examples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=128)),
        length_struct=dict.fromkeys(("tokens", "targets", "weights"), cfg.seq_len),
        num_packing_bins=cfg.packing_bins,
        seed=cfg.seed,
    )
    return packed.map(_named).batch(rows, drop_remainder=True)


def _named(row: Batch) -> Batch:
    """Keeps one copy of the segment ids and positions, which Grain writes for each feature."""
    return {
        "tokens": row["tokens"],
        "targets": row["targets"],
        "weights": row["weights"],
        "positions": row["tokens_positions"],
        "segments": row["tokens_segment_ids"],
    }
