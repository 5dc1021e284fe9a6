"""Implements the training step, and the loss that training and validation share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int

from crystal_jax.checkpoint.models import abstract_parameters, initial_parameters
from crystal_jax.config import DataConfig, Experiment, GuardConfig
from crystal_jax.model.layers import Dropout
from crystal_jax.model.transformer import Transformer
from crystal_jax.sharding import BATCH, abstract, on_mesh, platform_of, tree_shardings
from crystal_jax.text.fields import CLASSES
from crystal_jax.train.loss_spike import GuardState, choose, new_guard, skip_if_spike
from crystal_jax.train.optimizer import make_optimizer

Batch = dict[str, Array]

# Largest weight in MiB that is gathered before its matmul, not during it. In pieces, the matmuls of a 7B
# over 16 chips write and read partial sums so often that they are memory-bound (docs/TPU.md).
TPU_OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


class TrainState(NamedTuple):
    """Everything that changes during training; frozen weights are not included."""

    step: Int[Array, ""]
    params: nnx.State
    opt_state: optax.OptState
    guard: GuardState


TrainStep = Callable[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, Array]]]
Gradients = Callable[[nnx.State, nnx.State, Batch, Array | None], tuple[Array, Array, nnx.State]]
EvalStep = Callable[[nnx.State, nnx.State, Batch], tuple[Array, Array]]


class TrainSetup(NamedTuple):
    """Model on a mesh: train state, frozen weights, and the compiled train and eval steps."""

    state: TrainState
    frozen: nnx.State
    train_step: TrainStep
    eval_step: EvalStep


class Plan(NamedTuple):
    """Abstract `TrainSetup`: shapes, types and shardings instead of arrays.

    Attributes:
        state, frozen, train_step, eval_step: as in `TrainSetup`, with abstract arrays.
        batch: the input of the steps, abstract too.
        begin: function from parameters to the state before the first step.
    """

    state: TrainState
    frozen: nnx.State
    batch: dict[str, jax.ShapeDtypeStruct]
    train_step: Any
    eval_step: Any
    begin: Callable[[nnx.State], TrainState]


def plan(experiment: Experiment, mesh: Mesh) -> Plan:
    """Plans a run without creating arrays; the devices of the mesh need not exist."""
    optimizer = make_optimizer(experiment.optimizer, num_steps=experiment.train.num_steps)
    graph, params, frozen = abstract_parameters(experiment, mesh, experiment.quantize)

    def begin(params: nnx.State) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), new_guard(experiment.guard))

    state = jax.eval_shape(begin, params)
    # Looked up together with the frozen weights: for adapters alone, most rules of the table would be unused.
    where, _ = tree_shardings((state, frozen), mesh)
    accumulate = experiment.optimizer.accumulate
    adapters_drop = experiment.lora.rank and experiment.lora.dropout
    dropout_seed = experiment.train.seed if adapters_drop or experiment.train.dropout else None
    train_step = make_train_step(
        graph,
        optimizer,
        where,
        mesh,
        guard=experiment.guard,
        accumulate=accumulate,
        dropout=experiment.train.dropout,
        dropout_seed=dropout_seed,
    )
    return Plan(
        state=abstract(state, where),
        frozen=frozen,
        batch=abstract_batch(experiment.data, mesh),
        train_step=train_step,
        eval_step=make_eval_step(graph, mesh),
        begin=begin,
    )


def abstract_batch(cfg: DataConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, types and shardings of a batch of the data pipeline."""
    shape, where = (cfg.batch_size, cfg.seq_len), NamedSharding(mesh, BATCH)
    types = dict(tokens=jnp.int32, targets=jnp.int32, weights=jnp.float32, positions=jnp.int32, segments=jnp.int32)
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=where) for name, dtype in types.items()}


def setup(experiment: Experiment, mesh: Mesh) -> TrainSetup:
    """Builds every array on its own devices; no host or device ever holds a full copy."""
    planned = plan(experiment, mesh)
    _, params, frozen = initial_parameters(experiment, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, planned.state)
    state = jax.jit(planned.begin, out_shardings=where, donate_argnums=0)(params)
    return TrainSetup(state, frozen, planned.train_step, planned.eval_step)


def loss_sum(
    model: Transformer, batch: Batch, dropout: Dropout | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the sum of the cross-entropy in nats over the counted targets, and the number of these targets."""
    count = batch["weights"].sum()
    if not (chunk := model.execution.loss_chunk):
        return weighted_losses(model, batch, dropout).sum(), count
    x = model.hidden(batch["tokens"], batch["positions"], batch["segments"], dropout)
    return model.cross_entropy(x, batch["targets"], batch["weights"], chunk=chunk), count


def weighted_losses(model: Transformer, batch: Batch, dropout: Dropout | None = None) -> Float[Array, "b t"]:
    """Returns the cross-entropy in nats of every target; 0 for targets that do not count."""
    logits = model(batch["tokens"], batch["positions"], batch["segments"], dropout)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    return losses * batch["weights"]


def _make_gradients(graph: nnx.GraphDef, mesh: Mesh, *, accumulate: int, dropout: float) -> Gradients:
    """Returns `gradients(params, frozen, batch, key)`, which goes through the micro-batches one after another.

    It gives the sum of the losses, the number of counted targets, and the gradient of that sum. `key` is the random key
    of the dropout masks; None without dropout.
    """

    def of_micro_batch(
        params: nnx.State, frozen: nnx.State, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, nnx.State]:
        def objective(params: nnx.State) -> tuple[Array, Array]:
            dropped = None if key is None else Dropout(key, dropout)
            return loss_sum(nnx.merge(graph, params, frozen), batch, dropped)

        (total, count), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return total, count, grads

    def accumulated(
        params: nnx.State, frozen: nnx.State, batch: Batch, key: Array | None
    ) -> tuple[Array, Array, nnx.State]:
        if accumulate == 1:
            return of_micro_batch(params, frozen, batch, key)

        def micro_batches(x: Array) -> Array:
            # Every micro-batch takes rows from all devices, so no device idles.
            rows = x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
            return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, jax.P(None, *BATCH)))

        def add(sums: tuple, micro: tuple[Batch, Array | None]) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, sums, of_micro_batch(params, frozen, *micro)), None

        zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(accumulate))
        return jax.lax.scan(add, zeros, (jax.tree.map(micro_batches, batch), keys))[0]

    return accumulated


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    where: TrainState,
    mesh: Mesh,
    *,
    guard: GuardConfig,
    accumulate: int,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
) -> TrainStep:
    """Returns jitted `step(state, frozen, batch) -> (state, metrics)`; `state` is donated.

    The gradient is that of the mean over all counted targets of the global batch, for any number of micro-batches. The
    new state is constrained to the shardings of the old one: if the compiler chose them they could change, and the
    second step would compile again. A skipped step (loss spike) changes only the counters of the state.

    The dropout mask depends only on `dropout_seed` (None: no dropout), the step and the micro-batch, so a resumed run
    repeats an uninterrupted one without any random state in its checkpoints. `dropout` is `Dropout.rate`.
    """
    gradients = _make_gradients(graph, mesh, accumulate=accumulate, dropout=dropout)

    def step(state: TrainState, frozen: nnx.State, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        with on_mesh(mesh):
            total, count, grads = gradients(state.params, frozen, batch, _dropout_key(dropout_seed, state.step))
        grads = jax.tree.map(lambda g: g / count, grads)
        loss, norm = total / count, optax.tree.norm(grads)
        believed, guarded = skip_if_spike(guard, state.guard, loss, norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        learned = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = choose(believed, learned, (state.params, state.opt_state))
        metrics = {"loss": loss, "grad_norm": norm, "tokens": (batch["segments"] > 0).sum()}
        metrics |= {"skipped": guarded.skipped, "skipped_in_a_row": guarded.in_a_row}
        return TrainState(state.step + 1, params, opt_state, guarded), metrics

    options = TPU_OPTIONS if platform_of(mesh) == "tpu" else None
    return jax.jit(step, donate_argnums=0, out_shardings=(where, None), compiler_options=options)


def _dropout_key(seed: int | None, step: Array) -> Array | None:
    """Returns the random key of a step's dropout masks; None without dropout."""
    if seed is None:
        return None
    # Threefry independent of JAX's default: its bits do not depend on how an array is sharded.
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)


def make_eval_step(graph: nnx.GraphDef, mesh: Mesh) -> EvalStep:
    """Returns jitted `evaluate(params, frozen, batch) -> (loss sum, count)`.

    For a batch with `classes`, loss sum and count are arrays with one value for each of `CLASSES`.
    """

    def evaluate(params: nnx.State, frozen: nnx.State, batch: Batch) -> tuple[Array, Array]:
        with on_mesh(mesh):
            losses = weighted_losses(nnx.merge(graph, params, frozen), batch)
        if "classes" not in batch:
            return losses.sum(), batch["weights"].sum()
        member = jax.nn.one_hot(batch["classes"], len(CLASSES))
        return jnp.einsum("bt,btc->c", losses, member), jnp.einsum("bt,btc->c", batch["weights"], member)

    return jax.jit(evaluate)
