"""EasyLM's partition rules: whether they place a model's parameters as the table of shardings does.

Users of EasyLM keep them as (regular expression, mesh axes) in their forks. The first rule whose expression is found
in an array's path says over which mesh axes each of its axes is split. EasyLM's kernels are matrices, one a layer; here
they are stacked along a layer axis, and heads have an axis of their own.
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
_Spec = tuple[tuple[str, ...], ...]  # the mesh axes of each axis, without empty ones at the end


def read_rules(path: Path) -> list[Rule]:
    """Reads a JSON list of [regular expression, [mesh axis, null or list of mesh axes, ...]].

    Raises:
        UserError: the file is missing, or something else.
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
    """Compares the placement of each parameter; equal ones hold the same shards on a mesh of the same sizes.

    The optimizer's moments are placed as their parameters, in both. The output head of a tied model is passed over:
    EasyLM has a copy of the embedding there, and here is none.

    Raises:
        UserError: a parameter is placed differently; the message has the first one, what its rule says and what holds
            here, in EasyLM's names.
    """
    ours = _placements(cfg)
    for key, name in tensor_names(cfg).items():
        if name not in ours:
            continue
        here = ours[name]
        # The path within a train state, to which EasyLM applies its rules.
        rule = next((rule for rule in rules if re.search(rule[0], WEIGHTS + key)), None)
        if rule is None:
            raise UserError(f"no partition rule matches {key}, where EasyLM stops, too")
        pattern, axes = rule[0], tuple(rule[1])
        spec = () if math.prod(here.shape) == 1 else _spec(axes)  # EasyLM splits no scalar, whatever the rules say
        if spec != here.spec or len(axes) > len(here.shape):
            raise UserError(
                f"the partition rule {pattern!r} places {key} as {_shown(axes)}; "
                f"here, as {here.path}, it is {_shown(here.spec)}"
            )


class _Placement(NamedTuple):
    """Where a parameter lives here, told as of EasyLM's array: its shape, and a spec in EasyLM's names."""

    path: str
    shape: Shape
    spec: _Spec


def _placements(cfg: LlamaConfig) -> dict[str, _Placement]:
    """By Hugging Face's name of each tensor."""
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
        if axes.inputs:  # a matrix; heads are split, what is in a head never is
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
    """As in a rule's file."""
    return json.dumps([names[0] if len(names) == 1 else list(names) or None for names in map(_names, axes)])
