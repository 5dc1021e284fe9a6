"""The same step by Hugging Face's LLaMA and PEFT: the same crystals, padded, bf16, `sdpa` attention, AdamW.

A step sees the examples of the same packed batch, in micro-batches of `examples`, each padded to its longest as the
collator of Transformers does. Examples are sorted by length first, which the Trainer offers (`group_by_length`) and
which favours the peer. Real tokens are counted, as for ours.
"""

from __future__ import annotations

import time
import warnings

import numpy as np
import peft
import torch
import transformers

from benchmarks.gpu.case import Case, data_sheet
from benchmarks.gpu.models import experiment_of
from benchmarks.peer_examples import Example, collate, unpack
from benchmarks.peer_model import llama_config
from crystal_jax.config import LlamaConfig
from crystal_jax.model.flops import train_flops_per_token

_STEPS = 4


def main() -> None:
    case = Case(__doc__, size="7b", examples=32, targets="q,v", checkpointing=True)
    options = case.options
    # PEFT 0.21 asks Transformers 5.23 by an old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experiment = experiment_of(options.size, dry_run=case.dry_run, targets=options.targets)
    model = adapted(hugging_face(experiment.model, device), options.targets, experiment.lora)
    if options.checkpointing:
        # Its name until Transformers 5.17, and since.
        recompute = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        recompute()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    packed = np.load(case.bundle / "packed_1024.npz")
    rows = experiment.data.batch_size
    steps = [unpack({name: packed[name][i, :rows] for name in packed.files}) for i in range(2)]
    rates, losses = [], []
    for i in range(1 + (1 if case.dry_run else _STEPS)):
        examples = steps[i % len(steps)]
        begin = time.perf_counter()
        losses.append(step(model, optimizer, examples, options.examples, device))
        seconds = time.perf_counter() - begin
        if i:  # the first warms up
            rates.append(sum(len(example["input_ids"]) - 1 for example in examples) / seconds)
            case.answer.put("tokens_per_s", rates, "real tokens/s")
            if device.type == "cuda":
                case.answer.put("peak_memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")
                peak, _ = data_sheet(torch.cuda.get_device_name())
                if peak:
                    flops = train_flops_per_token(experiment.model, experiment.lora)
                    case.answer.put("mfu", [100 * flops * rate / peak / 1e12 for rate in rates], "%")
        if not case.has_time(seconds + 5):
            break
    if not np.isfinite(losses).all():
        raise SystemExit(f"losses are not finite: {losses}")
    case.answer.put("losses", losses)


def step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: list[Example],
    micro_batch: int,
    device: torch.device,
) -> float:
    """One optimizer step over the examples; returns the mean loss, which waits for the device."""
    ordered = sorted(examples, key=lambda example: len(example["input_ids"]))
    counted = sum(label != -100 for example in ordered for label in example["labels"][1:])
    total = torch.zeros((), device=device)
    for first in range(0, len(ordered), micro_batch):
        batch = {name: x.to(device) for name, x in collate([ordered[first : first + micro_batch]]).items()}
        loss = model(**batch, num_items_in_batch=counted).loss
        loss.backward()
        total += loss.detach()
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(total)


def hugging_face(cfg: LlamaConfig, device: torch.device) -> transformers.LlamaForCausalLM:
    """`LlamaForCausalLM` of these shapes with random weights, in bf16 on the device."""
    config = llama_config(cfg, attn_implementation="sdpa")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def adapted(model: torch.nn.Module, targets: str, lora) -> torch.nn.Module:
    """The model with PEFT's adapters, which train in float32 as ours do."""
    names = [f"{name}_proj" for name in targets.split(",")]
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
    model = peft.get_peft_model(model, config)
    model.train()
    return model


if __name__ == "__main__":
    main()
