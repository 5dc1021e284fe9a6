"""The two contestants: our training step, and Hugging Face's `Trainer` on the same weights and examples.

Import this only after the threads are limited: both libraries count the cores they may use when they are imported.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version

import jax
import peft
import torch
import transformers
from absl import flags
from flax import nnx

from benchmarks.machine import processor
from benchmarks.peer_examples import Example, collate
from benchmarks.peer_model import llama_config
from crystal_jax.checkpoint.layout import StateSource
from crystal_jax.checkpoint.tensors import stream
from crystal_jax.config import Experiment, LoraConfig
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import Record
from crystal_jax.data.pipeline import Batch, train_batches
from crystal_jax.sharding import make_mesh, put_batch
from crystal_jax.train.step import setup

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "torch", "transformers", "peft", "accelerate")


def begin(threads: int) -> None:
    """Limits PyTorch's threads and says what is compared, and where."""
    flags.FLAGS(["benchmark"])  # Grain reads absl flags of its own
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    print(f"{processor()}, {threads} threads, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in _PACKAGES))
    load = os.getloadavg()[0]
    print(f"load average {load:.2f}" + (": the machine is not idle, expect low figures" if load > 0.5 else ""))


class Ours:
    """Our training loop without logs and checkpoints."""

    def __init__(self, experiment: Experiment, records: Sequence[Record], maker: ExampleMaker):
        self._mesh = make_mesh(experiment.mesh)
        self._setup = setup(experiment, self._mesh)
        self._data = train_batches(records, maker, experiment.data)
        self.state = self._setup.state

    def weights(self) -> nnx.State:
        return nnx.merge_state(self.state.params, self._setup.frozen)

    def base(self) -> nnx.State:
        """The weights without adapters."""
        return nnx.split_state(self.weights(), nnx.LoRAParam, ...)[1]

    def loss(self, batch: Batch) -> float:
        total, count = self._setup.eval_step(self.state.params, self._setup.frozen, put_batch(batch, self._mesh))
        return float(total / count)

    def run(self, steps: int) -> float:
        """Seconds that all steps but the first take, reading their data included."""
        begin = 0.0
        for i in range(steps):
            batch = put_batch(next(self._data), self._mesh)
            self.state, metrics = self._setup.train_step(self.state, self._setup.frozen, batch)
            if i == 0:
                jax.block_until_ready((self.state, metrics))
                begin = time.perf_counter()
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - begin


def hugging_face_twin(experiment: Experiment, weights: nnx.State) -> transformers.LlamaForCausalLM:
    """`LlamaForCausalLM` with our weights."""
    cfg = experiment.model
    model = transformers.LlamaForCausalLM(llama_config(cfg, use_cache=False))
    tensors = {name: torch.tensor(tensor) for name, tensor in stream(StateSource(weights, cfg))}
    if cfg.tie_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors)
    return model


def with_adapters(model: transformers.LlamaForCausalLM, lora: LoraConfig) -> torch.nn.Module:
    """The peer's model with PEFT's adapters where ours has them."""
    if not lora.rank:
        return model
    targets = [f"{name}_proj" for name in lora.targets]
    return peft.get_peft_model(model, peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets))


def peer_loss(model: torch.nn.Module, examples: list[Example]) -> float:
    with torch.no_grad():
        return float(model(**collate([examples])).loss)


class _Clock(transformers.TrainerCallback):
    """The times at which the Trainer's steps end."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.ends.append(time.perf_counter())


def peer_seconds(model: torch.nn.Module, steps: list[list[Example]]) -> float:
    """Seconds of all steps but the first in Hugging Face's Trainer, with its own AdamW and clipping."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            max_steps=len(steps),
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            learning_rate=1e-3,
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        transformers.Trainer(model, arguments, train_dataset=steps, data_collator=collate, callbacks=[clock]).train()
    return clock.ends[-1] - clock.ends[0]
