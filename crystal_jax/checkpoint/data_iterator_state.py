"""Saves the data position in a checkpoint, as one small file per stream.

A process saves the streams it owns and restores the streams it runs, so a run can resume with another number of
processes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import orbax.checkpoint as ocp

_COUNT = "shards"


class Position(Protocol):
    """Interface of a reader of streams: `data.pipeline.BatchStream`."""

    owned: tuple[int, ...]

    def get_state(self) -> dict[str, Any]:
        """Returns the state of each stream by its number, and the number of streams under `shards`."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores a state."""
        ...


class PositionHandler(ocp.CheckpointHandler):
    """Orbax handler that reads and writes `stream_I-of-N.json`."""

    def save(self, directory: Path, args: PositionSave) -> None:
        state = args.item.get_state()
        for number in args.item.owned:
            (directory / _name(number, state[_COUNT])).write_text(json.dumps(state[str(number)]))

    def restore(self, directory: Path, args: PositionRestore) -> None:
        state: dict[str, Any] = {}
        for file in sorted(directory.glob("stream_*.json")):
            number, count = file.stem.removeprefix("stream_").split("-of-")
            state |= {number: json.loads(file.read_text()), _COUNT: int(count)}
        args.item.set_state(state)


def _name(number: int, count: int) -> str:
    return f"stream_{number}-of-{count}.json"


@ocp.args.register_with_handler(PositionHandler, for_save=True)
@dataclasses.dataclass
class PositionSave(ocp.args.CheckpointArgs):
    """Arguments for saving the position of `item`."""

    item: Position


@ocp.args.register_with_handler(PositionHandler, for_restore=True)
@dataclasses.dataclass
class PositionRestore(ocp.args.CheckpointArgs):
    """Arguments for restoring the saved position of `item`."""

    item: Position
