"""The flags and settings of a trained model and its devices, shared by all commands that load a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from absl import flags

from crystal_jax.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

ALL_ON_DATA = "-1,1,1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A trained model and its devices.

    Attributes:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        step: A checkpoint's step, or the best one; the last by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`); no influence on the results.
    """

    checkpoint: str | Path
    step: int | Literal["best"] | None = None
    mesh: str = ALL_ON_DATA


def define_model_flags(flag_values: flags.FlagValues) -> None:
    """Defines --checkpoint, --step and --mesh."""
    flags.DEFINE_string(
        "checkpoint", None, "A workdir, an exported folder, or a released model: crystal-tiny.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "step", None, "A checkpoint's step, or 'best'; the last one by default.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "mesh", ALL_ON_DATA, "Devices along the axes data, fsdp, tensor; -1 is all the others.", flag_values=flag_values
    )


def step_of(flag_values: flags.FlagValues) -> int | Literal["best"] | None:
    """Returns the step given by --step.

    Raises:
        UserError: it is neither a number nor 'best'.
    """
    step = flag_values.step
    if step is None or step == "best":
        return step
    if not step.isdecimal():
        raise UserError(f"--step={step} is neither a number nor 'best'")
    return int(step)


def mesh_of(text: str) -> Mesh:
    """Returns the mesh over all devices described by a text such as "-1,1,1".

    Raises:
        UserError: the text does not describe a mesh, or the mesh does not fit the devices.
    """
    # Imported late, so that --help and flag errors are fast.
    from crystal_jax.config import MeshConfig
    from crystal_jax.sharding import make_mesh

    try:
        config = MeshConfig.parse(text)
    except ValueError as error:
        raise UserError(str(error)) from error
    return make_mesh(config)
