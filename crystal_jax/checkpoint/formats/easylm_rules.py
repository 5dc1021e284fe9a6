"""Checks whether EasyLM's partition rules shard a model's parameters as the sharding table does.

Users of EasyLM keep the rules as (regular expression, mesh axes) in their forks. The first rule whose expression is
found in an array's path states over which mesh axes each axis of the array is split. EasyLM's kernels are one matrix
per layer; here they are stacked along a layer axis, and heads have an axis of their own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from crystal_jax.checkpoint.formats.easylm import WEIGHTS, tensor_names
from crystal_jax.checkpoint.layout import NAMES, axes_of, leaves_by_path
from crystal_jax.checkpoint.tensors import Shape
from crystal_jax.config import EASYLM_AXES, ExecutionConfig, LlamaConfig, LoraConfig
from crystal_jax.errors import UserError
from crystal_jax.json_files import read_json
from crystal_jax.model.architectures import make_model
from crystal_jax.sharding import rule_for

Axis = str | Sequence[str] | None
Rule = tuple[str, Iterable[Axis]]
_Spec = tuple[tuple[str, ...], ...]  # the mesh axes of each array axis, without trailing empty ones


def read_rules(path: Path) -> list[Rule]:
    """Reads a JSON list of [regular expression, [mesh axis, null or list of mesh axes, ...]].

    Raises:
        UserError: the file is missing, or has another content.
    """
    rules = read_json(path)
    if not isinstance(rules, list) or not rules:
        raise UserError(f"{path} is no list of rules: [[regular expression, [mesh axis or null, ...]], ...]")
    for number, rule in enumerate(rules, 1):
        if not _is_rule(rule):
            raise UserError(
                f"{path}: rule {number} is {json.dumps(rule):.200}, not [regular expression, [mesh axis, null or list, "
                "...]]"
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise UserError(f"{path}: rule {number}, {rule[0]!r}, is no regular expression: {error}") from error
    return [(pattern, axes) for pattern, axes in rules]


def check_rules(rules: Sequence[Rule], cfg: LlamaConfig) -> None:
    """Compares the sharding of each parameter; equally sharded parameters have the same shards on a mesh of the same
    sizes.

    The optimizer's moments are sharded as their parameters, in both. The output head of a tied model is skipped: EasyLM
    has a copy of the embedding there, this model has none.

    Raises:
        UserError: a parameter is sharded differently; the message names the first one with both shardings, in EasyLM's
            names.
    """
    ours = _placements(cfg)
    for key, name in tensor_names(cfg).items():
        if name not in ours:
            continue
        here = ours[name]
        # EasyLM applies its rules to the path within a train state.
        rule = next((rule for rule in rules if re.search(rule[0], WEIGHTS + key)), None)
        if rule is None:
            raise UserError(f"no partition rule matches {key}, where EasyLM stops, too")
        pattern, axes = rule[0], tuple(rule[1])
        spec = () if math.prod(here.shape) == 1 else _spec(axes)  # EasyLM never shards scalars
        if spec != here.spec or len(axes) > len(here.shape):
            raise UserError(
                f"the partition rule {pattern!r} places {key} as {_shown(axes)}; "
                f"here, as {here.path}, it is {_shown(here.spec)}"
            )


class _Placement(NamedTuple):
    """Sharding of a parameter in this model, in terms of EasyLM's array: its shape, and a spec with EasyLM's axis
    names.
    """

    path: str
    shape: Shape
    spec: _Spec


def _placements(cfg: LlamaConfig) -> dict[str, _Placement]:
    """Returns the placement of each tensor by Hugging Face's name."""
    lora, execution = LoraConfig(rank=0, alpha=1.0, targets=()), ExecutionConfig(scan_layers=False, remat=False)
    model = nnx.eval_shape(lambda: make_model(cfg, lora, execution, rngs=nnx.Rngs(0)))
    theirs = {ours: easylm for easylm, ours in EASYLM_AXES.items()}
    placements: dict[str, _Placement] = {}
    for path, leaf in leaves_by_path(nnx.state(model)).items():
        _, spec = rule_for(path, leaf.shape)
        axes = axes_of(path, leaf.ndim)
        sizes, split = list(leaf.shape), [theirs.get(axis) for axis in (*spec, *[None] * (leaf.ndim - len(spec)))]
        if axes.stacked:
            sizes, split = sizes[1:], split[1:]
        if axes.inputs:  # a matrix; heads are sharded, axes within a head never are
            starts = (0, axes.inputs)
            sizes = [math.prod(sizes[: axes.inputs]), math.prod(sizes[axes.inputs :])]
            assert not any(axis for i, axis in enumerate(split) if i not in starts), path
            split = [split[i] for i in starts]
        placement = _Placement(path, tuple(sizes), _spec(split))
        placements |= {NAMES[path].format(i): placement for i in range(cfg.num_layers)}
    return placements


def _is_rule(rule: Any) -> bool:
    return (
        isinstance(rule, list)
        and len(rule) == 2
        and isinstance(rule[0], str)
        and isinstance(rule[1], list)
        and all(
            axis is None
            or isinstance(axis, str)
            or (isinstance(axis, list) and all(isinstance(name, str) for name in axis))
            for axis in rule[1]
        )
    )


def _names(axis: Axis) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else tuple(axis or ())


def _spec(axes: Iterable[Axis]) -> _Spec:
    split = [_names(axis) for axis in axes]
    while split and not split[-1]:
        split.pop()
    return tuple(split)


def _shown(axes: Iterable[Axis]) -> str:
    """Formats a spec as in a file of rules."""
    return json.dumps([names[0] if len(names) == 1 else list(names) or None for names in map(_names, axes)])
