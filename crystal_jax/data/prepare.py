"""Builds a data set once, and finds it on later calls."""

from __future__ import annotations

import contextlib
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from crystal_jax.errors import UserError
from tfds_mp20.mp20_dataset_builder import Builder, make_config

_LEFT_ALONE = 3600  # s; older half-written folders belong to killed runs
_FULL = ("No space left", "Disk quota", "File too large")


def prepare(
    dataset: str,
    *,
    data_dir: Path,
    manual_dir: Path | None = None,
    max_entries: int | None = None,
    seed: int = 0,
    on_error: str = "fail",
    primitive: bool = True,
) -> Path:
    """Builds a data set unless it exists already, and returns its directory.

    Args:
        dataset: mp20, perov5, carbon24, mp20_open, amcsd or csv.
        data_dir: folder of all data sets.
        manual_dir: folder of files that are not downloaded; for csv also a single file.
        max_entries: size of a subset to build; None builds all.
        seed: seed that selects the subset.
        on_error: what to do with a csv crystal that cannot be used: "fail" or "skip".
        primitive: whether to reduce the cells of csv crystals to primitive ones.

    Raises:
        UserError: the data set is unknown, an input is unusable, missing or unreachable, or the disk cannot be written
            to. Nothing of the data set is kept then.
    """
    if manual_dir is not None and not manual_dir.exists():
        raise UserError(f"there is no {manual_dir}; pass an existing --manual_dir")
    config = make_config(
        dataset, path=manual_dir, max_entries=max_entries, seed=seed, on_error=on_error, primitive=primitive
    )
    folder = manual_dir if manual_dir is not None and manual_dir.is_dir() else None
    tfds.disable_progress_bar()  # the sources show their own progress bars, with totals
    try:
        with _quiet():
            # TFDS requires its own object for a config it knows, and accepts any object for a new one.
            known = Builder.builder_configs.get(config.name, config)
            builder = Builder(config=known, data_dir=data_dir, file_format="array_record")
    except OSError as error:
        raise _unwritable(data_dir, error) from error
    directory = Path(builder.data_dir)
    _remove_what_was_killed(directory)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints messages
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    except OSError as error:
        raise _unwritable(data_dir, error) from error
    except (ValueError, RuntimeError) as error:  # errors of ArrayRecord, a C++ library
        if not any(sign in str(error) for sign in _FULL):
            raise
        raise _unwritable(data_dir, OSError("the disk is full")) from error
    finally:
        if not directory.exists():
            _remove_empty(directory.parent, until=data_dir)
    return directory


def _unwritable(data_dir: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"no data set can be written below {data_dir} ({reason}); pass another --data_dir")


def _remove_what_was_killed(directory: Path) -> None:
    """Removes half-written folders of killed runs: those not modified for an hour."""
    for path in directory.parent.glob(f"incomplete.*_{directory.name}"):
        if time.time() - path.stat().st_mtime > _LEFT_ALONE:
            shutil.rmtree(path, ignore_errors=True)


def _remove_empty(folder: Path, *, until: Path) -> None:
    """Removes empty folders, from this one up to `until`."""
    with contextlib.suppress(OSError):  # one is not empty
        while folder != until:
            folder.rmdir()
            folder = folder.parent


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses TFDS's long warning about a config that is not one of the builder's own."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
