"""Building a data set once, and finding it again."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from crystal_jax.errors import UserError
from tfds_mp20.mp20_dataset_builder import Builder, make_config


def prepare(
    dataset: str,
    *,
    data_dir: Path,
    manual_dir: Path | None = None,
    max_entries: int | None = None,
    seed: int = 0,
    on_error: str = "fail",
) -> Path:
    """Builds a data set, unless it is there already, and returns its directory.

    Args:
        dataset: mp20, perov5, carbon24, mp20_open, amcsd or csv.
        data_dir: where all data sets live.
        manual_dir: folder of files that are not downloaded; for csv also a single file.
        max_entries: build a subset of this many crystals; None builds all.
        seed: chooses the subset.
        on_error: what a csv crystal that cannot be used does: "fail" or "skip".

    Raises:
        UserError: no such data set, or an unusable, absent or unreachable input.
    """
    if manual_dir is not None and not manual_dir.exists():
        raise UserError(f"there is no {manual_dir}; pass an existing --manual_dir")
    config = make_config(dataset, path=manual_dir, max_entries=max_entries, seed=seed, on_error=on_error)
    folder = manual_dir if manual_dir is not None and manual_dir.is_dir() else None
    tfds.disable_progress_bar()  # the sources show their own, with totals
    try:
        with _quiet():
            # TFDS wants its own object back for a config it knows, and any object for a new one.
            known = Builder.builder_configs.get(config.name, config)
            builder = Builder(config=known, data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS chats there
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    except OSError as error:
        raise UserError(f"no data set can be written below {data_dir} ({error}); pass another --data_dir") from error
    return Path(builder.data_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's warning, a screenful, that a config is not one of the builder's own."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
