"""Runs the training loop: train, log, validate, save. A workdir with a checkpoint is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from crystal_jax.checkpoint.data_iterator_state import PositionRestore, PositionSave
from crystal_jax.checkpoint.workdir import open_checkpoints, restore
from crystal_jax.config import Experiment
from crystal_jax.data.pipeline import Batch, BatchStream
from crystal_jax.errors import Preempted, UserError
from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.processes import is_first
from crystal_jax.sharding import put_batch
from crystal_jax.train.monitoring.goodput import GoodputTimer
from crystal_jax.train.monitoring.logs import MetricsLog
from crystal_jax.train.monitoring.profiler import Profiler
from crystal_jax.train.optimizer import learning_rate
from crystal_jax.train.preemption import Preemption
from crystal_jax.train.step import TrainSetup, TrainState
from crystal_jax.train.validation import validate

Probe = Callable[[TrainSetup, TrainState], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What a training run consists of.

    Attributes:
        experiment: configuration of the run.
        setup: the model on the mesh.
        mesh: all devices of all processes.
        train_data: the batch rows of this process.
        validation_data: batches with `classes`.
        material_ids: names of the training crystals; a batch refers to them by number, from 1.
        probe: draws and evaluates samples at checkpoints.
    """

    experiment: Experiment
    setup: TrainSetup
    mesh: Mesh
    train_data: BatchStream
    validation_data: Sequence[Batch]
    material_ids: Sequence[str]
    probe: Probe | None = None


def fit(
    parts: TrainingParts,
    workdir: Path,
    *,
    started: float | None = None,
    stop_after: int | None = None,
    profile_steps: range = range(0),
) -> TrainState:
    """Trains to `experiment.train.num_steps` and returns the last state.

    State and data position are saved together, so a resumed run equals an uninterrupted one: the losses are bit-equal.
    On SIGTERM, and when Google announces that it will stop the machine, a checkpoint is saved at once.

    Args:
        parts: the model, its configuration and its data.
        workdir: folder of checkpoints and logs.
        started: start time of this part of the run in seconds since 1970, so that loading the model is included.
        stop_after: step after which to save and stop early, as after an interruption.
        profile_steps: steps to trace into `workdir/profile`.

    Raises:
        UserError: the loss is not finite, or too many steps in a row were skipped as loss spikes.
        Preempted: SIGTERM or an announcement came; the same command resumes from the saved step.
    """
    cfg, data = parts.experiment.train, parts.train_data
    state, last = parts.setup.state, cfg.num_steps if stop_after is None else min(stop_after, cfg.num_steps)
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(open_checkpoints(workdir, keep=cfg.max_to_keep, best=cfg.best_metric))
        preemption = stack.enter_context(Preemption())
        if (saved := checkpoints.latest_step()) is not None:
            state = _restore(checkpoints, saved, state, data)
        first = int(state.step)
        report = _Report(parts, workdir, first=first, started=started or time.time())
        stack.callback(report.close)
        trace = Profiler(workdir / "profile", profile_steps)
        stack.callback(trace.close)
        for step in range(first + 1, last + 1):
            state = _train_step(parts, state, step, report, trace, compiles=step == first + 1)
            leaving = preemption.reached(step)
            validates = step % cfg.eval_every == 0 or step == last
            saves = step % cfg.save_every == 0 or step == last
            if leaving or validates or saves:
                report.flush()  # a step that stops the run must not be saved
            if leaving:  # the machine may be stopped within seconds
                _save(checkpoints, step, state, data, {})
                checkpoints.wait_until_finished()
            measured = _measure(parts, state, report, validates=validates, probes=saves)
            if saves:
                with report.clock.span("save"):
                    _save(checkpoints, step, state, data, measured)
            report.measured(step, measured)
            if leaving and step < last:
                raise Preempted(f"asked to stop; step {step} is saved, the same command goes on from there")
        checkpoints.wait_until_finished()
    return state


def _train_step(
    parts: TrainingParts, state: TrainState, step: int, report: _Report, trace: Profiler, *, compiles: bool
) -> TrainState:
    """Dispatches a training step with the next batch; `compiles`: it is the first one of this process."""
    with report.clock.span("data_wait"):
        batch = next(parts.train_data)
    crystals = batch.pop("crystals")
    trace.before(step)
    with (
        jax.profiler.StepTraceAnnotation("train", step_num=step),
        report.clock.span("compile") if compiles else contextlib.nullcontext(),
    ):
        state, metrics = parts.setup.train_step(state, parts.setup.frozen, put_batch(batch, parts.mesh))
    trace.after(step, metrics)
    # Metrics are read one step late, so that the device does not wait for the host.
    report.step(_Done(step, metrics, crystals))
    return state


def _measure(
    parts: TrainingParts, state: TrainState, report: _Report, *, validates: bool, probes: bool
) -> dict[str, float]:
    """Returns the validation losses, and the rates of samples, of a state."""
    measured: dict[str, float] = {}
    if validates:
        with report.clock.span("validation"):
            measured |= validate(parts.setup, state, parts.validation_data, mesh=parts.mesh)
    if probes and parts.probe is not None:
        with report.clock.span("sampling"):
            measured |= parts.probe(parts.setup, state)
    return measured


class _Done(NamedTuple):
    """Step that was dispatched to the devices; its metrics may not be computed yet."""

    step: int
    metrics: dict[str, jax.Array]
    crystals: np.ndarray


class _Report:
    """Logs, progress bar and loss-spike messages of a run. All processes keep it; only the first one writes."""

    def __init__(self, parts: TrainingParts, workdir: Path, *, first: int, started: float):
        experiment = parts.experiment
        self._cfg, self._guard, self._material_ids = experiment.train, experiment.guard, parts.material_ids
        self._schedule = learning_rate(experiment.optimizer, num_steps=self._cfg.num_steps)
        self._flops = train_flops_per_token(experiment.model, experiment.lora)
        self._skips = workdir / "skipped.jsonl"
        self._log = MetricsLog(workdir, resume_step=first, speaks=is_first())
        before = self._log.last("started")
        if before is None:
            self._log.write(0, {"started": started})
        self.clock = GoodputTimer(
            started=started if before is None else before, productive=self._log.last("productive_seconds") or 0.0
        )
        self._bar = tqdm(
            total=self._cfg.num_steps, initial=first, desc="train", unit="step", smoothing=0.05, disable=not is_first()
        )
        self._pending: _Done | None = None
        self._tokens = 0.0

    def step(self, done: _Done) -> None:
        """Records a step, after reading the metrics of the previous one."""
        self.flush()
        self._pending = done
        self._bar.update()

    def flush(self) -> None:
        """Reads the metrics of the pending step.

        Raises:
            UserError: the loss is not finite, or too many steps in a row were skipped.
        """
        if self._pending is None:
            return
        (step, metrics, crystals), self._pending = self._pending, None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._tokens += values["tokens"]
        if values["skipped_in_a_row"]:
            self._skipped(step, values, crystals)
        if step % self._cfg.log_every == 0 or step == self._cfg.num_steps:
            self._write(step, values)

    def _write(self, step: int, values: dict[str, float]) -> None:
        seconds, spent = self.clock.interval()
        waited = spent.pop("data_wait", 0.0)
        rate, self._tokens = self._tokens / max(seconds + waited, 1e-9), 0.0
        row = {
            "loss": values["loss"],
            "grad_norm": values["grad_norm"],
            # A skipped step does not move the schedule, which counts updates.
            "learning_rate": float(self._schedule(step - 1 - values["skipped"])),
            "skipped": values["skipped"],
            "tokens_per_second": rate,
            "data_wait_seconds": waited,
            **{f"{name}_seconds": spent_on for name, spent_on in spent.items()},
            "productive_seconds": self.clock.productive,
            "goodput": self.clock.goodput(),
            **_memory(),
        }
        if self._cfg.peak_tflops:
            row["mfu"] = rate * self._flops / (jax.device_count() * self._cfg.peak_tflops * 1e12)
        self._log.write(step, row)
        self._bar.set_postfix(loss=f"{values['loss']:.3f}", tokens_per_second=f"{rate:,.0f}")

    def _skipped(self, step: int, values: dict[str, float], crystals: np.ndarray) -> None:
        """Records a skipped step with the crystals in its batch, and stops the run if the cause is not a single bad
        batch.

        Raises:
            UserError: the loss or gradient norm is not finite, or `guard.patience` steps in a row were skipped.
        """
        names = self._names(crystals)
        loss, norm = values["loss"], values["grad_norm"]
        self._log.write_skipped(step, {"loss": loss, "grad_norm": norm}, names)
        shown = f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names)
        what = f"the loss of step {step} is {loss:.4g}, its gradient norm {norm:.4g}; its batch held {shown}"
        what += f" ({self._skips})"
        if not np.isfinite((loss, norm)).all():
            raise UserError(f"{what}; the last checkpoint is kept, try a lower optimizer.peak_lr")
        if values["skipped_in_a_row"] >= self._guard.patience:
            raise UserError(
                f"{what}; {self._guard.patience} steps in a row were so far above the median that they were skipped: "
                "try a lower optimizer.peak_lr, or larger guard.loss_factor and guard.norm_factor"
            )
        self._say(f"skipped: {what}")

    def _names(self, crystals: np.ndarray) -> list[str]:
        """Returns the names of the crystals in the global batch; all processes call it at the same step."""
        everywhere = multihost_utils.process_allgather(crystals) if jax.process_count() > 1 else crystals
        return [self._material_ids[i - 1] for i in np.unique(everywhere) if i > 0]

    def measured(self, step: int, values: dict[str, float]) -> None:
        """Logs the results of validation and sampling."""
        if values:
            self._log.write(step, values)
            said = ", ".join(f"{name.removeprefix('val_')} {value:.4f}" for name, value in values.items())
            self._say(f"step {step}: {said}")

    def _say(self, line: str) -> None:
        if is_first():
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Closes progress bar and log."""
        self._bar.close()
        self._log.close()


def _memory() -> dict[str, float]:
    """Returns memory figures of this process's first device in units of 10⁹ bytes; empty on devices without them
    (CPUs).
    """
    counted = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "memory_gb", "peak_bytes_in_use": "memory_peak_gb", "bytes_limit": "memory_limit_gb"}
    return {ours: counted[theirs] / 1e9 for theirs, ours in names.items() if theirs in counted}


def _save(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    data: BatchStream,
    measured: dict[str, float],
) -> None:
    """Starts an asynchronous save; the files are written while training continues."""
    if step in checkpoints.all_steps():
        return
    items = dict(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave(_rest(state)),
        data=PositionSave(data),
    )
    checkpoints.save(step, args=ocp.args.Composite(**items), metrics=measured)


def _restore(checkpoints: ocp.CheckpointManager, step: int, like: TrainState, data: BatchStream) -> TrainState:
    folder = Path(checkpoints.directory) / str(step)
    if not any((folder / "data").glob("stream_*.json")):
        raise UserError(f"{folder} was written by an earlier version: sample from it, or begin in another --workdir")
    items = dict(
        params=ocp.args.StandardRestore(like.params),
        optimizer=ocp.args.StandardRestore(_rest(like)),
        data=PositionRestore(data),
    )
    restored = restore(checkpoints, step, **items)
    return TrainState(params=restored.params, **restored.optimizer)


def _rest(state: TrainState) -> dict[str, Any]:
    """Returns the state without the parameters, which are a separate item because sampling reads only them."""
    return {name: value for name, value in state._asdict().items() if name != "params"}
