"""What a model is and how it is computed: architecture, adapters, quantisation, execution."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from crystal_jax.config.check import LARGEST, MOST_LAYERS, build, require
from crystal_jax.errors import UserError

# A row of packed tokens is cut into tiles of so many, the lanes of a TPU's registers, or of a multiple.
SPLASH_TOKENS = 128
# Projections of a block, in the order in which their adapters' dropout is numbered.
PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


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
        architecture: Says in a file which architecture the other fields are of.
    """

    projections: ClassVar[tuple[str, ...]] = PROJECTIONS
    num_positions: ClassVar[None] = None  # texts may have any length

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
    architecture: Literal["llama"] = "llama"

    def __post_init__(self):
        _check_sizes(self, "num_kv_heads", "head_dim")
        _check_choices(self, architecture="llama")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: RoPE turns pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpt2Config:
    """Architecture of a GPT-2 model (Radford et al., 2019).

    Its output projection is the transposed embedding, every query head has a key/value head of its own, and heads
    share the width evenly; so there are no fields for that.

    Attributes:
        vocab_size: Rows of the token embedding; the tokenizer's, where a config leaves it out.
        embed_dim, mlp_dim, num_layers, num_heads: Sizes; GPT-2's mlp_dim is four times its embed_dim.
        num_positions: Rows of the position embedding: the longest text, prompt included, in tokens.
        norm_eps: Of the layer norms.
        dtype: Of the activations and of the frozen base weights.
        architecture: Says in a file which architecture the other fields are of.
    """

    projections: ClassVar[tuple[str, ...]] = ("q", "k", "v", "o", "up", "down")
    tie_embeddings: ClassVar[bool] = True

    vocab_size: int
    embed_dim: int
    mlp_dim: int
    num_layers: int
    num_heads: int
    num_positions: int
    norm_eps: float
    dtype: Literal["float32", "bfloat16"]
    architecture: Literal["gpt2"] = "gpt2"

    def __post_init__(self):
        _check_sizes(self, "num_positions")
        _check_choices(self, architecture="gpt2")
        require(
            self.embed_dim % self.num_heads == 0,
            f"model.embed_dim={self.embed_dim} is not a multiple of model.num_heads={self.num_heads}",
        )

    @property
    def num_kv_heads(self) -> int:
        """As many as query heads."""
        return self.num_heads

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


ModelConfig = LlamaConfig | Gpt2Config
_ARCHITECTURES: Mapping[str, type[LlamaConfig] | type[Gpt2Config]] = {"llama": LlamaConfig, "gpt2": Gpt2Config}


def model_config(**fields: Any) -> ModelConfig:
    """The configuration of `architecture`, which is LLaMA-2's where it is not stated.

    Raises:
        TypeError, ValueError: there is no such architecture, a field that it lacks, or an impossible value.
    """
    name = fields.get("architecture", "llama")
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise ValueError(f"model.architecture={name!r} is none of {', '.join(_ARCHITECTURES)}")
    return build(_ARCHITECTURES[name], "model", fields)


def check_length(cfg: ModelConfig, tokens: int) -> None:
    """Raises UserError where a text of so many tokens, prompt included, is longer than the model can read."""
    if cfg.num_positions is not None and tokens > cfg.num_positions:
        raise UserError(
            f"texts of up to {tokens} tokens are longer than the model can read, model.num_positions="
            f"{cfg.num_positions}; ask for fewer atoms (max_atoms), or train with more positions"
        )


def _check_sizes(cfg: ModelConfig, *more: str) -> None:
    for name in ("vocab_size", "embed_dim", "mlp_dim", "num_layers", "num_heads", *more):
        value, most = getattr(cfg, name), MOST_LAYERS if name == "num_layers" else LARGEST
        require(value > 0, f"model.{name} must be positive, not {value}")
        require(value <= most, f"model.{name}={value} is more than {most}")


def _check_choices(cfg: ModelConfig, *, architecture: str) -> None:
    require(cfg.dtype in ("float32", "bfloat16"), f"model.dtype={cfg.dtype!r} is neither float32 nor bfloat16")
    require(cfg.architecture == architecture, f"model.architecture={cfg.architecture!r}, in fields of {architecture}'s")


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
        require(self.rank >= 0, f"lora.rank must not be negative, not {self.rank}")
        require(0 <= self.dropout < 1, f"lora.dropout={self.dropout} is not a share below 1")
        if unknown := set(self.targets) - set(PROJECTIONS):
            raise ValueError(f"lora.targets has {', '.join(sorted(unknown))}; there are: {', '.join(PROJECTIONS)}")

    @property
    def scale(self) -> float:
        """α / r, or α / √r when rank-stabilised."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """How the frozen kernels of the blocks are kept under adapters (`model/frozen_base/quantize.py`).

    Attributes:
        kind: `none`, `int8`, `int4` or `nf4` (QLoRA: Dettmers et al., arXiv:2305.14314).
        block_size: Weights of a column that share a scale, in 4 bits; int8 has one scale for each column.
    """

    kind: Literal["none", "int8", "int4", "nf4"] = "none"
    block_size: int = 64

    def __post_init__(self):
        kinds = ("none", "int8", "int4", "nf4")
        require(self.kind in kinds, f"quantize.kind={self.kind!r} is none of {', '.join(kinds)}")
        require(self.block_size > 0, f"quantize.block_size must be positive, not {self.block_size}")


UNQUANTIZED = QuantizationConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How the same model is computed; no choice here changes its outputs beyond rounding.

    Attributes:
        scan_layers: One compiled block in a loop (short compilation: pods), or unrolled (faster on CPU).
        remat: Recompute a block's activations in the backward pass instead of keeping them.
        keep_products: Of what `remat` would recompute, keep what products with weights and splash kernels return: a
            quarter fewer operations, and several times the memory.
        attention: How tokens attend to each other: `einsum`, or a hand-written kernel that keeps its weights on the
            chip. `splash` is JAX's for packed rows on a TPU (docs/TPU.md), `cudnn` is cuDNN's for packed rows and for
            decoding on an NVIDIA GPU, in 16 bits (docs/GPU.md). On other devices both mean einsums.
        loss_chunk: Places of a row whose logits a training step computes at once, only those that count in the loss; it
            divides the row. 0: all places at once, which is faster where the vocabulary is small.
    """

    scan_layers: bool
    remat: bool
    loss_chunk: int = 0
    keep_products: bool = False
    attention: Literal["einsum", "splash", "cudnn"] = "einsum"

    def __post_init__(self):
        require(
            self.attention in ("einsum", "splash", "cudnn"),
            f"execution.attention={self.attention!r} is none of einsum, splash, cudnn",
        )
        require(
            self.remat or not self.keep_products,
            "execution.keep_products needs execution.remat, without which everything is kept",
        )
        require(self.loss_chunk >= 0, f"execution.loss_chunk must not be negative, not {self.loss_chunk}")
