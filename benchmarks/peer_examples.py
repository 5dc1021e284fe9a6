"""The examples of packed rows, as Hugging Face's models want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

Example = dict[str, list[int]]


def unpack(batch: Mapping[str, np.ndarray]) -> list[Example]:
    """The examples of packed rows [b, t]: labels are the ids themselves, -100 does not count."""
    examples = []
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            tokens, targets, weights = (
                batch[name][row][batch["segments"][row] == segment] for name in ("tokens", "targets", "weights")
            )
            labels = np.where(weights > 0, targets, -100)
            examples.append({"input_ids": [*tokens.tolist(), int(targets[-1])], "labels": [-100, *labels.tolist()]})
    return examples


def collate(steps: Sequence[Sequence[Example]]) -> dict[str, torch.Tensor]:
    """Pads the examples of one optimizer step to their longest. The Trainer's batch is one such step."""
    (examples,) = steps
    length = max(len(example["input_ids"]) for example in examples)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([example[name] + [fill] * (length - len(example[name])) for example in examples])

    ids, labels = padded("input_ids", 0), padded("labels", -100)
    lengths = torch.tensor([[len(example["input_ids"])] for example in examples])
    return {"input_ids": ids, "labels": labels, "attention_mask": (torch.arange(length) < lengths).long()}
