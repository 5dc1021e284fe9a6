"""The training loop: step, log, validate, save; a workdir with a checkpoint is continued."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from tqdm import tqdm

from crystal_jax.checkpoint.position import PositionRestore, PositionSave
from crystal_jax.checkpoint.workdir import open_checkpoints
from crystal_jax.config import Experiment
from crystal_jax.data.pipeline import Batch, BatchStream
from crystal_jax.errors import UserError
from crystal_jax.sharding import put_batch
from crystal_jax.train.logs import MetricsLog
from crystal_jax.train.optimizer import learning_rate
from crystal_jax.train.step import Setup, TrainState


@dataclasses.dataclass
class _Meter:
    """What is measured between two logged steps."""

    tokens: int = 0
    since: float = dataclasses.field(default_factory=time.perf_counter)

    def rate(self) -> float:
        """Real (not padding) tokens a second."""
        now = time.perf_counter()
        rate, self.tokens, self.since = self.tokens / (now - self.since), 0, now
        return rate


def fit(
    experiment: Experiment,
    setup: Setup,
    train_data: BatchStream,
    validation_data: list[Batch],
    *,
    mesh: Mesh,
    workdir: Path,
    stop_after: int | None = None,
) -> TrainState:
    """Trains to `experiment.train.num_steps` and returns the last state.

    State and data position are saved together, so an interrupted run goes on as if it never stopped: the losses
    are equal to the bit. `stop_after` ends the run early, as an interruption would, after a save.

    Raises:
        UserError: the loss is not finite.
    """
    cfg = experiment.train
    state, frozen = setup.state, setup.frozen
    schedule = learning_rate(experiment.optimizer, num_steps=cfg.num_steps)
    last = cfg.num_steps if stop_after is None else min(stop_after, cfg.num_steps)
    with open_checkpoints(workdir, keep=cfg.keep) as checkpoints:
        if (saved := checkpoints.latest_step()) is not None:
            state = _restore(checkpoints, saved, state, train_data)
        first = int(state.step)
        log = MetricsLog(workdir, resume_step=first)
        bar = tqdm(total=cfg.num_steps, initial=first, desc="train", unit="step", smoothing=0.05)
        meter, pending = _Meter(), None
        for step in range(first + 1, last + 1):
            batch = next(train_data)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = setup.train_step(state, frozen, put_batch(batch, mesh))
            # Metrics are read one step late, so that the device is not kept waiting for the host.
            if pending is not None:
                _log_step(log, bar, schedule, meter, *pending)
            meter.tokens += int((batch["segments"] > 0).sum()) * jax.process_count()
            pending = (step, metrics) if step % cfg.log_every == 0 or step == last else None
            if step % cfg.eval_every == 0 or step == last:
                loss = validation_loss(setup, state, validation_data, mesh=mesh)
                log.write(step, {"val_loss": loss})
                bar.write(f"step {step}: validation loss {loss:.4f} nats a token")
            if step % cfg.save_every == 0 or step == last:
                _save(checkpoints, step, state, train_data)
            bar.update()
        if pending is not None:
            _log_step(log, bar, schedule, meter, *pending)
        checkpoints.wait_until_finished()
        bar.close()
        log.close()
    return state


def validation_loss(setup: Setup, state: TrainState, batches: list[Batch], *, mesh: Mesh) -> float:
    """Mean cross-entropy in nats over all counted targets of some batches."""
    sums = [setup.eval_step(state.params, setup.frozen, put_batch(batch, mesh)) for batch in batches]
    total, count = np.sum(jax.device_get(sums), axis=0)
    return float(total / count)


def _log_step(log: MetricsLog, bar: tqdm, schedule, meter: _Meter, step: int, metrics: dict) -> None:
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not np.isfinite((values["loss"], values["grad_norm"])).all():
        raise UserError(
            f"the loss of step {step} is {values['loss']}, its gradient norm {values['grad_norm']}; the last checkpoint "
            "is kept, try a lower optimizer.peak_lr"
        )
    rate = meter.rate()
    log.write(
        step,
        {
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            "learning_rate": float(schedule(step - 1)),
            "tokens_per_second": rate,
        },
    )
    bar.set_postfix(loss=f"{values['loss']:.3f}", tokens_per_second=f"{rate:,.0f}")


def _save(checkpoints: ocp.CheckpointManager, step: int, state: TrainState, data: BatchStream) -> None:
    if step in checkpoints.all_steps():
        return
    items = dict(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state, "guard": state.guard}),
        data=PositionSave(data),
    )
    checkpoints.save(step, args=ocp.args.Composite(**items))


def _restore(checkpoints: ocp.CheckpointManager, step: int, like: TrainState, data: BatchStream) -> TrainState:
    items = dict(
        params=ocp.args.StandardRestore(like.params),
        optimizer=ocp.args.StandardRestore({"step": like.step, "opt_state": like.opt_state, "guard": like.guard}),
        data=PositionRestore(data),
    )
    restored = checkpoints.restore(step, args=ocp.args.Composite(**items))
    rest = restored.optimizer
    return TrainState(rest["step"], restored.params, rest["opt_state"], rest["guard"])
