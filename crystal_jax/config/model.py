"""What a model is and how it is computed: architecture, adapters, quantisation, execution."""

from __future__ import annotations

import dataclasses
from typing import Literal

from crystal_jax.config.check import require


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
            require(getattr(self, name) > 0, f"model.{name} must be positive, not {getattr(self, name)}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}",
        )
        require(self.head_dim % 2 == 0, f"model.head_dim={self.head_dim} must be even: RoPE turns pairs")
        require(
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
    """How the frozen kernels of the blocks are kept under adapters (`model/quantize.py`).

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
        loss_chunk: Places of a row whose logits a training step computes at once, only those that count in the loss; it
            divides the row. 0: all places at once, which is faster where the vocabulary is small.
    """

    scan_layers: bool
    remat: bool
    loss_chunk: int = 0

    def __post_init__(self):
        require(self.loss_chunk >= 0, f"execution.loss_chunk must not be negative, not {self.loss_chunk}")
