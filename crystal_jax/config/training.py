"""What a model is trained on and how: examples, batches, update rule, length, devices."""

from __future__ import annotations

import dataclasses
from typing import Literal

from crystal_jax.config.check import check_seed, require
from crystal_jax.text.crystal_text import ELEMENTS


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer: atom_coordinate, character; llama2, llama2_crystal or huggingface with the `path` of its file."""

    name: str
    path: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What an example is.

    Attributes:
        infill: Share of infilling examples; the paper uses 0.34.
        conditions: State properties before a generation example, as the paper does (20 % state none).
        translate: Move all sites by one random fractional vector, a new one at each access.
        order: Of the sites: `stored`, as the data set has them (the paper); `sorted` by their printed coordinates,
            x before y before z, after any translation; `random`, anew at each access.
        loss: `completion`, or `all`, as published: the prompt counts too.
    """

    infill: float
    conditions: bool
    translate: bool
    order: Literal["stored", "sorted", "random"]
    loss: Literal["completion", "all"]

    def __post_init__(self):
        require(0 <= self.infill <= 1, f"task.infill={self.infill} is not a share between 0 and 1")
        orders = ("stored", "sorted", "random")
        require(self.order in orders, f"task.order={self.order!r} is none of {', '.join(orders)}")
        require(self.loss in ("completion", "all"), f"task.loss={self.loss!r} is neither 'completion' nor 'all'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Batches of `batch_size` rows of `seq_len` tokens, each row packed with whole examples.

    Attributes:
        directory: A prepared data set.
        seq_len: Tokens in a row.
        batch_size: Rows in a global batch.
        packing_bins: Rows that are filled side by side; more waste less, and hold examples back longer.
        seed: Of the order, the augmentation and the task mix.
        shards: Streams that the crystals are dealt to; each gives its own rows of every batch, and a process runs
            only those whose rows its devices hold. A property of the run, not of the machine: the batches are the
            same on any number of processes. On a pod, a multiple of the number of hosts.
        exclude_elements: Crystals with any of these elements are left out, of both splits.
        include_elements: Only crystals with at least one of these elements are kept; () is all.
    """

    directory: str
    seq_len: int
    batch_size: int
    packing_bins: int
    seed: int
    shards: int = 1
    exclude_elements: tuple[str, ...] = ()
    include_elements: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("exclude_elements", "include_elements"):
            symbols = getattr(self, name)
            unknown = sorted({*symbols} - {*ELEMENTS}) if isinstance(symbols, tuple) else [repr(symbols)]
            require(not unknown, f"data.{name} has {', '.join(unknown)}; it is a tuple of elements, such as ('H',)")
        check_seed("data.seed", self.seed)
        for name in ("seq_len", "batch_size", "packing_bins", "shards"):
            require(getattr(self, name) > 0, f"data.{name} must be positive, not {getattr(self, name)}")
        require(
            self.batch_size % self.shards == 0,
            f"data.batch_size={self.batch_size} does not divide over data.shards={self.shards}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The update rule, with linear warm-up and cosine decay to `end_lr`.

    Attributes:
        name: `adamw`, or `muon`: orthogonal updates of the blocks' kernels (Jordan et al., 2024), AdamW for the rest.
            From nothing it learns faster; for adapters it is AdamW.
        peak_lr, end_lr, warmup_steps, b1, b2, weight_decay: As in Optax.
        clip_norm: Global gradient norm above which gradients are scaled down.
        accumulate: Micro-batches a step: each is `batch_size / accumulate` rows.
    """

    peak_lr: float
    end_lr: float
    warmup_steps: int
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float
    accumulate: int
    name: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self):
        require(self.name in ("adamw", "muon"), f"optimizer.name={self.name!r} is neither 'adamw' nor 'muon'")
        require(self.peak_lr > 0, f"optimizer.peak_lr must be positive, not {self.peak_lr}")
        require(self.accumulate > 0, f"optimizer.accumulate must be positive, not {self.accumulate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of a run, and what happens how often.

    Attributes:
        num_steps: The run's length; the learning rate's decay ends there.
        log_every, eval_every, save_every: Steps.
        eval_batches: Batches of the validation split that a validation uses.
        max_to_keep: Checkpoints kept: the last ones, and beside them the best.
        seed: Of the initial weights.
        best_metric: Metric that chooses the best checkpoint; only steps that were validated are considered. Lower is
            better for `val_loss` and its parts (`val_loss_coordinate`, …), higher for `sample_validity` and its kin.
        eval_num_samples: Crystals that are sampled and judged at every checkpoint; 0 is none.
        peak_tflops: What one device can do in the type it computes in, 10¹² FLOP/s, as its maker states it. The log
            has the share of it that training reaches (MFU); 0 leaves that out.
        token_features: Share of the variance of a token's first embedding that comes from what the token means
            (text/token_features.py), so that tokens alike begin alike; 0 draws all of it independently.
        dropout: Share of what blocks add to the residual stream that a training step sets to zero (GPT-2's
            `resid_pdrop`): against learning by heart what is read many times.
    """

    num_steps: int
    log_every: int
    eval_every: int
    save_every: int
    eval_batches: int
    max_to_keep: int
    seed: int
    best_metric: str = "val_loss"
    eval_num_samples: int = 0
    peak_tflops: float = 0.0
    token_features: float = 0.0
    dropout: float = 0.0

    def __post_init__(self):
        for name in ("num_steps", "log_every", "eval_every", "save_every", "eval_batches", "max_to_keep"):
            require(getattr(self, name) > 0, f"train.{name} must be positive, not {getattr(self, name)}")
        check_seed("train.seed", self.seed)
        for name in ("eval_num_samples", "peak_tflops"):
            require(getattr(self, name) >= 0, f"train.{name} must not be negative, not {getattr(self, name)}")
        require(
            0 <= self.token_features <= 1,
            f"train.token_features={self.token_features} is not a share between 0 and 1",
        )
        require(0 <= self.dropout < 1, f"train.dropout={self.dropout} is not a share below 1")
        require(
            self.best_metric in LOSSES or self.best_metric in SAMPLE_RATES,
            f"train.best_metric={self.best_metric!r} is none of {', '.join((*LOSSES, *SAMPLE_RATES))}",
        )
        require(
            self.best_metric in LOSSES or self.eval_num_samples > 0,
            f"train.best_metric={self.best_metric!r} needs samples to judge: set train.eval_num_samples",
        )


# What a validation measures: nats a token, of all targets and of each class; and rates among the samples drawn.
LOSSES = tuple(f"val_loss{name}" for name in ("", "_lattice", "_element", "_coordinate", "_end", "_composition"))
SAMPLE_RATES = ("sample_validity", "sample_structural_validity", "sample_compositional_validity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a step is not to be believed (`train/loss_spike.py`). A loss that is not finite always stops the run.

    Attributes:
        window: Steps whose median loss and gradient norm are the yardstick; the first so many are not judged.
        loss_factor: The update is skipped when the loss is so many times the median; 0 is never.
        norm_factor: The same of the gradient norm.
        patience: The run stops after so many skipped steps in a row.
    """

    window: int = 64
    loss_factor: float = 2.0
    norm_factor: float = 10.0
    patience: int = 10

    def __post_init__(self):
        for name in ("window", "patience"):
            require(getattr(self, name) > 0, f"guard.{name} must be positive, not {getattr(self, name)}")
        for name in ("loss_factor", "norm_factor"):
            value = getattr(self, name)
            require(value == 0 or value > 1, f"guard.{name}={value} must be above 1, or 0 for never")


DEFAULT_GUARD = GuardConfig()


EASYLM_AXES = {"dp": "data", "fsdp": "fsdp", "mp": "tensor"}  # its names of mesh axes → ours


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, which is whatever is left."""

    data: int
    fsdp: int
    tensor: int

    @classmethod
    def parse(cls, text: str) -> MeshConfig:
        """Reads "1,-1,1" or "data:1,fsdp:-1,tensor:1"; EasyLM's `mesh_dim` is the same, with the names dp, fsdp, mp.

        Raises:
            ValueError: it is neither.
        """
        if text.startswith("!"):
            raise ValueError(
                f"mesh {text!r}: EasyLM's '!' fixes the order of devices, which is chosen here; leave it out"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        parts = [part.strip().rpartition(":") for part in text.split(",")]
        given = [EASYLM_AXES.get(name, name) or names[i] for i, (name, _, _) in enumerate(parts[: len(names)])]
        try:
            sizes = dict(zip(given, (int(size) for _, _, size in parts), strict=True))
        except ValueError:
            sizes = {}
        if sorted(sizes) != sorted(names):
            raise ValueError(f"mesh {text!r} is not written like '1,-1,1' or 'data:1,fsdp:-1,tensor:1'")
        return cls(**sizes)
