"""Crystals an hour by `generate` of Hugging Face: random weights, and lengths made real.

The peer does what the reference does: a batch is written side by side, and ends with its longest crystal. Random
weights never end by themselves, so each batch is told the length of its longest real crystal. No grammar: what a real
model writes so would still have to be parsed, and part of it thrown away, which is not counted against the peer.
"""

from __future__ import annotations

import time

import torch

from benchmarks.gpu.case import Case
from benchmarks.gpu.decode import replayed
from benchmarks.gpu.models import experiment_of
from benchmarks.gpu.peer_lora_step import hugging_face

PROMPT_TOKENS = 32


def main() -> None:
    case = Case(__doc__, size="7b", batch_sizes="256")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = hugging_face(experiment_of(case.options.size, dry_run=case.dry_run).model, device).eval()
    for slots in map(int, case.options.batch_sizes.split(",")):
        slots = 4 if case.dry_run else slots
        longest = max(one["tokens"] for one in replayed(case, slots))
        generate(model, slots, 8, device)  # warms up
        rates, seconds = [], 0.0
        while len(rates) < 3 and (not rates or case.has_time(1.3 * seconds)):
            begin = time.perf_counter()
            generate(model, slots, longest, device)
            seconds = time.perf_counter() - begin
            rates.append(3600 * slots / seconds)
            case.answer.put(f"crystals_per_hour_{slots}", rates, "crystals/h")
        case.answer.put(f"tokens_{slots}", f"{longest} a batch")
    if device.type == "cuda":
        case.answer.put("peak_memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def generate(model: torch.nn.Module, slots: int, tokens: int, device: torch.device) -> None:
    """Writes so many tokens in each slot, and waits for them."""
    prompts = torch.randint(5, 1000, (slots, PROMPT_TOKENS), device=device)
    with torch.inference_mode():
        model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=0.7,
            top_k=0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
            use_cache=True,
        )
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
