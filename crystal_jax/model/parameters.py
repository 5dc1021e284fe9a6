"""Types of a model in two parts: its parameters, and the graph that makes a model of them (`flax.nnx.split`)."""

from __future__ import annotations

from collections.abc import Hashable

from flax import nnx

from crystal_jax.model.transformer import Transformer

ModelGraph = nnx.GraphDef[Transformer]
Params = nnx.State[Hashable, object]
