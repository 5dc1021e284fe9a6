"""A trained model with all that a command needs to read and write its texts: devices, tokenizer, text format."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from crystal_jax import progress
from crystal_jax.checkpoint.model_flags import mesh_of
from crystal_jax.checkpoint.models import Trained, load_for_inference
from crystal_jax.checkpoint.pretrained import locate
from crystal_jax.config import Experiment
from crystal_jax.text.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class InferenceModel:
    """A trained model on its devices, with its tokenizer.

    Attributes:
        path: Folder of the checkpoint.
        trained: Graph, parameters, and the configuration of the training run.
        tokenizer: The tokenizer of the training run.
        mesh: The devices that hold the parameters.
    """

    path: Path
    trained: Trained
    tokenizer: Tokenizer
    mesh: Mesh

    @property
    def experiment(self) -> Experiment:
        """Returns the configuration of the training run."""
        return self.trained.experiment

    def checkpoint_request(self) -> dict[str, Any]:
        """Returns the part of a request in `run.json` that names the checkpoint."""
        return {"checkpoint": str(self.path.resolve()), "step": self.trained.step}

    def text_request(self, *, site_order: bool = False) -> dict[str, Any]:
        """Returns the part of a request in `run.json` that describes the texts; `site_order` adds that of the sites."""
        text, task = self.experiment.text, self.experiment.task
        order = {"order": task.order} if site_order else {}
        return {
            "text_format": text.version,
            "coordinates": text.coordinates,
            **order,
            "tokenizer": self.tokenizer.name,
        }


def load_inference_model(
    checkpoint: str | Path, *, step: int | Literal["best"] | None = None, mesh: str
) -> InferenceModel:
    """Loads a model for inference (`load_for_inference`), and its tokenizer.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        step: Step of a workdir's checkpoint, or "best"; the last one by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`).

    Raises:
        UserError: no such checkpoint, or the mesh does not fit the devices.
    """
    progress.say(f"loading {checkpoint}")
    devices = mesh_of(mesh)
    trained = load_for_inference(checkpoint, devices, step=step)
    return InferenceModel(locate(checkpoint), trained, tokenizer_of(trained.experiment), devices)


def tokenizer_of(experiment: Experiment) -> Tokenizer:
    """Returns the tokenizer of a training run."""
    return load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
