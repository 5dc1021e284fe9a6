"""The typed configuration of a run: frozen dataclasses, built from a ConfigDict in one place.

Files in `configs/` make a `ml_collections.ConfigDict`; the command line changes its leaves; `from_config_dict` turns
it into an `Experiment`, and nothing further inside reads a ConfigDict. Each value is stated once, in the config
file, except where a default below says otherwise. No JAX here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import TextFormat


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Architecture of a LLaMA-2 model (Touvron et al., arXiv:2307.09288).

    Attributes:
        vocab_size: Rows of the token embedding; the tokenizer's, where a config leaves it out.
        embed_dim, mlp_dim, num_layers, num_heads, num_kv_heads, head_dim: Sizes. Fewer key/value heads than query
            heads is grouped-query attention.
        norm_eps: Of the RMS norms.
        rope_theta: Base of the rotary embedding's wavelengths.
        tie_embeddings: The output projection is the transposed embedding.
        dtype: Of the activations and of the frozen base weights.
    """

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    tie_embeddings: bool
    dtype: Literal["float32", "bfloat16"]

    def __post_init__(self):
        for name in (
            "vocab_size",
            "embed_dim",
            "mlp_dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        ):
            _require(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        _require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: RoPE turns pairs")
        _require(
            self.dtype in ("float32", "bfloat16"),
            f"model.dtype={self.dtype!r} is neither float32 nor bfloat16",
        )


PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def input_axes(projection: str) -> int:
    """How many axes of a projection's kernel are contracted: only `o` has two, the heads and their dimension."""
    return 2 if projection == "o" else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., arXiv:2106.09685): W x + α/r B A x.

    Attributes:
        rank: r; 0 is no adapters, and the whole model is trained.
        alpha: α.
        targets: The projections that have adapters.
        dropout: Share of the adapters' inputs that a training step sets to zero (PEFT's `lora_dropout`).
        rank_stabilized: Divide α by √r instead of r (rsLoRA: Kalajdzievski, arXiv:2312.03732).
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self):
        _require(self.rank >= 0, f"lora.rank must not be negative, not {self.rank}")
        _require(0 <= self.dropout < 1, f"lora.dropout={self.dropout} is not a share below 1")
        if unknown := set(self.targets) - set(PROJECTIONS):
            raise ValueError(f"lora.targets has {', '.join(sorted(unknown))}; there are: {', '.join(PROJECTIONS)}")

    @property
    def scale(self) -> float:
        """α / r, or α / √r when rank-stabilised."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How the frozen kernels of the blocks are kept under adapters (`model/quantize.py`).

    Attributes:
        kind: `none`, `int8`, `int4` or `nf4` (QLoRA: Dettmers et al., arXiv:2305.14314).
        block_size: Weights of a column that share a scale, in 4 bits; int8 has one scale for each column.
    """

    kind: Literal["none", "int8", "int4", "nf4"] = "none"
    block_size: int = 64

    def __post_init__(self):
        kinds = ("none", "int8", "int4", "nf4")
        _require(self.kind in kinds, f"quantize.kind={self.kind!r} is none of {', '.join(kinds)}")
        _require(self.block_size > 0, f"quantize.block_size must be positive, not {self.block_size}")


UNQUANTIZED = QuantizationConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How the same model is computed; no choice here changes its outputs beyond rounding.

    Attributes:
        scan_layers: One compiled block in a loop (short compilation: pods), or unrolled (faster on CPU).
        remat: Recompute a block's activations in the backward pass instead of keeping them.
        loss_chunk: Places of a row whose logits a training step computes at once, only those that count in the loss; it
            divides the row. 0: all places at once, which is faster where the vocabulary is small.
    """

    scan_layers: bool
    remat: bool
    loss_chunk: int = 0

    def __post_init__(self):
        _require(self.loss_chunk >= 0, f"execution.loss_chunk must not be negative, not {self.loss_chunk}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A tokenizer: atom_coordinate, character; llama2 or huggingface with the `path` of its file."""

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
        _require(0 <= self.infill <= 1, f"task.infill={self.infill} is not a share between 0 and 1")
        orders = ("stored", "sorted", "random")
        _require(self.order in orders, f"task.order={self.order!r} is none of {', '.join(orders)}")
        _require(self.loss in ("completion", "all"), f"task.loss={self.loss!r} is neither 'completion' nor 'all'")


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
    """

    directory: str
    seq_len: int
    batch_size: int
    packing_bins: int
    seed: int
    shards: int = 1

    def __post_init__(self):
        for name in ("seq_len", "batch_size", "packing_bins", "shards"):
            _require(getattr(self, name) > 0, f"data.{name} must be positive, not {getattr(self, name)}")
        _require(
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
        _require(self.name in ("adamw", "muon"), f"optimizer.name={self.name!r} is neither 'adamw' nor 'muon'")
        _require(self.peak_lr > 0, f"optimizer.peak_lr must be positive, not {self.peak_lr}")
        _require(self.accumulate > 0, f"optimizer.accumulate must be positive, not {self.accumulate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The length of a run, and what happens how often.

    Attributes:
        num_steps: The run's length; the learning rate's decay ends there.
        log_every, eval_every, save_every: Steps.
        eval_batches: Batches of the validation split that a validation uses.
        keep: Checkpoints kept: the last ones, and beside them the best.
        seed: Of the initial weights.
        best: What decides which checkpoint is the best, of those whose step was validated too: `val_loss` or a part
            of it (`val_loss_coordinate`, …), where less is better, or `sample_validity` and its kin, where more is.
        samples: Crystals that are drawn and judged at every checkpoint; 0 is none.
        peak_tflops: What one device can do in the type it computes in, 10¹² FLOP/s, as its maker states it. The log
            has the share of it that training reaches (MFU); 0 leaves that out.
        token_features: Share of the variance of a token's first embedding that comes from what the token means
            (text/token_features.py), so that tokens alike begin alike; 0 draws all of it independently.
    """

    num_steps: int
    log_every: int
    eval_every: int
    save_every: int
    eval_batches: int
    keep: int
    seed: int
    best: str = "val_loss"
    samples: int = 0
    peak_tflops: float = 0.0
    token_features: float = 0.0

    def __post_init__(self):
        for name in ("num_steps", "log_every", "eval_every", "save_every", "eval_batches", "keep"):
            _require(getattr(self, name) > 0, f"train.{name} must be positive, not {getattr(self, name)}")
        for name in ("samples", "peak_tflops"):
            _require(getattr(self, name) >= 0, f"train.{name} must not be negative, not {getattr(self, name)}")
        _require(
            0 <= self.token_features <= 1,
            f"train.token_features={self.token_features} is not a share between 0 and 1",
        )
        _require(
            self.best in LOSSES or self.best in SAMPLE_RATES,
            f"train.best={self.best!r} is none of {', '.join((*LOSSES, *SAMPLE_RATES))}",
        )
        _require(
            self.best in LOSSES or self.samples > 0,
            f"train.best={self.best!r} needs samples to judge: set train.samples",
        )


# What a validation measures: nats a token, of all targets and of each class; and rates among the samples drawn.
LOSSES = ("val_loss", "val_loss_lattice", "val_loss_element", "val_loss_coordinate", "val_loss_end")
SAMPLE_RATES = ("sample_validity", "sample_structural_validity", "sample_compositional_validity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When a step is not to be believed (`train/guards.py`). A loss that is not finite always stops the run.

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
            _require(getattr(self, name) > 0, f"guard.{name} must be positive, not {getattr(self, name)}")
        for name in ("loss_factor", "norm_factor"):
            value = getattr(self, name)
            _require(value == 0 or value > 1, f"guard.{name}={value} must be above 1, or 0 for never")


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
        easylm = {"dp": "data", "mp": "tensor"}
        names = [field.name for field in dataclasses.fields(cls)]
        parts = [part.strip().rpartition(":") for part in text.split(",")]
        given = [easylm.get(name, name) or names[i] for i, (name, _, _) in enumerate(parts[: len(names)])]
        try:
            sizes = dict(zip(given, (int(size) for _, _, size in parts), strict=True))
        except ValueError:
            sizes = {}
        if sorted(sizes) != sorted(names):
            raise ValueError(f"mesh {text!r} is not written like '1,-1,1' or 'data:1,fsdp:-1,tensor:1'")
        return cls(**sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """All that decides a training run.

    `base` is the model that training begins with, under adapters or as a whole: a workdir, a Hugging Face folder, or
    the name of a released model; "" is none.
    """

    model: LlamaConfig
    lora: LoraConfig
    execution: ExecutionConfig
    text: TextFormat
    tokenizer: TokenizerConfig
    task: TaskConfig
    data: DataConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    mesh: MeshConfig
    base: str = ""
    quantize: QuantizationConfig = UNQUANTIZED
    guard: GuardConfig = GuardConfig()

    def __post_init__(self):
        _require(
            self.quantize.kind == "none" or self.lora.rank > 0,
            f"quantize.kind={self.quantize.kind!r} needs a frozen base, and with lora.rank=0 every weight is trained",
        )
        _require(
            not self.train.token_features
            or (self.tokenizer.name == "atom_coordinate" and not self.lora.rank and not self.base),
            "train.token_features needs tokenizer.name='atom_coordinate', whose tokens are whole numbers and elements, "
            "lora.rank=0, which trains the embedding, and no base, which would bring one",
        )
        chunk, row = self.execution.loss_chunk, self.data.seq_len
        _require(not chunk or row % chunk == 0, f"execution.loss_chunk={chunk} does not divide data.seq_len={row}")


def from_config_dict(tree: Mapping[str, Any], *, vocab_size: int) -> Experiment:
    """Builds the typed configuration; `vocab_size` fills the model's where the config leaves it out.

    Raises:
        UserError: a section or key is missing, unknown, or has an impossible value.
    """
    fields = dataclasses.fields(Experiment)
    sections = {field.name: _SECTIONS.get(field.name) for field in fields}
    optional = {field.name for field in fields if field.default is not dataclasses.MISSING}
    if unknown := set(tree) - set(sections):
        raise UserError(f"config has unknown keys {', '.join(sorted(unknown))}; expected {', '.join(sections)}")
    built: dict[str, Any] = {}
    for name, cls in sections.items():
        if name not in tree:
            if name in optional:
                continue
            raise UserError(f"config lacks the section {name!r}")
        if cls is None:
            built[name] = tree[name]
            continue
        if name == "mesh" and isinstance(tree[name], str):
            try:
                built[name] = MeshConfig.parse(tree[name])
            except ValueError as error:
                raise UserError(f"config.mesh: {error}") from error
            continue
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in dict(tree[name]).items()}
        if name == "model":
            values.setdefault("vocab_size", vocab_size)
        try:
            built[name] = cls(**values)
        except (TypeError, ValueError) as error:
            raise UserError(f"config.{name}: {str(error).replace('__init__() ', '')}") from error
    try:
        return Experiment(**built)
    except ValueError as error:
        raise UserError(f"config: {error}") from error


_SECTIONS: Mapping[str, type] = {
    "model": LlamaConfig,
    "lora": LoraConfig,
    "execution": ExecutionConfig,
    "text": TextFormat,
    "tokenizer": TokenizerConfig,
    "task": TaskConfig,
    "data": DataConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
    "mesh": MeshConfig,
    "quantize": QuantizationConfig,
    "guard": GuardConfig,
}
