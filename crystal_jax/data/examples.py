"""Converts crystals to training examples: augmentation, task, prompt, tokens, and loss weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from crystal_jax.config import TaskConfig
from crystal_jax.data.mp20 import Record
from crystal_jax.data.symmetric import symmetric_text
from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import ELEMENTS, Crystal, TextFormat
from crystal_jax.text.fields import END, OTHER, token_classes
from crystal_jax.text.prompts import draw_conditions, generation_prompt, infill_prompt, mask_element
from crystal_jax.text.tokenizer import Tokenizer, encode_example


def crystal_of(record: Record) -> Crystal:
    """Returns the record's crystal, with sites in the order in which pymatgen reads its CIF: by electronegativity.

    Raises:
        ValueError: an element is not part of the text formats.
    """
    numbers = record.atomic_numbers.tolist()
    if max(numbers) > len(ELEMENTS):
        raise RequestError(f"element {max(numbers)} has no symbol in crystals' texts, which end with {ELEMENTS[-1]}")
    symbols = tuple(ELEMENTS[z - 1] for z in numbers)
    return Crystal(record.lattice[:3], record.lattice[3:], record.frac_coords, symbols)


def properties_of(record: Record) -> dict[str, str | float | int]:
    """Returns the properties that prompts can state, by their names in the CDVAE data files."""
    return {
        "pretty_formula": record.formula,
        "formation_energy_per_atom": record.formation_energy_per_atom,
        "band_gap": record.band_gap,
        "e_above_hull": record.e_above_hull,
        "spacegroup.number": record.spacegroup,
    }


@dataclasses.dataclass(frozen=True)
class ExampleMaker:
    """Converts a record to an example: `maker(record, rng)`. It is pure given its generator, so a data position
    determines its example.

    Attributes:
        tokenizer, text_format, task: settings that define an example.
        classify: whether to add the class of each target (`text/fields.py`).
    """

    tokenizer: Tokenizer
    text_format: TextFormat
    task: TaskConfig
    classify: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of an example's arrays."""
        return ("tokens", "targets", "weights", *(("classes",) if self.classify else ()))

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Returns the next-token arrays of one example.

        Returns:
            `tokens` and `targets`, int32 [n], with targets shifted by one; `weights`, float32 [n], 1 where the target
                counts in the loss; with `classify` also `classes`, int32 [n], an index into `CLASSES`.

        Raises:
            RequestError: a piece of the text is not in the tokenizer's vocabulary.
        """
        prompt, completion = self.texts(record, rng)
        head, body = encode_example(self.tokenizer, prompt, completion)
        ids = np.array([self.tokenizer.bos_id, *head, *body, self.tokenizer.eos_id], np.int32)
        weights = np.ones(len(ids) - 1, np.float32)
        if self.task.loss == "completion":
            weights[: len(head)] = 0
        example = {"tokens": ids[:-1], "targets": ids[1:], "weights": weights}
        if self.classify:
            classes = (
                [OTHER] * len(head) + token_classes(self.tokenizer, self.text_format, completion, len(body)) + [END]
            )
            example["classes"] = np.array(classes, np.int32)
        return example

    def texts(self, record: Record, rng: np.random.Generator) -> tuple[str, str]:
        """Returns prompt and completion, with augmentation."""
        crystal = crystal_of(record)
        if self.text_format.version == "wyckoff":
            text = symmetric_text(crystal, self.text_format, rng if self.task.translate else None)
            return self._with_task(record, crystal, text, rng)
        if self.task.translate:
            crystal = crystal.translated(rng.random(3))
        if self.task.order == "sorted":
            crystal = self.text_format.sorted(crystal)
        elif self.task.order == "random":
            crystal = crystal.permuted(rng.permutation(len(crystal.symbols)))
        return self._with_task(record, crystal, self.text_format.encode(crystal), rng)

    def _with_task(self, record: Record, crystal: Crystal, text: str, rng: np.random.Generator) -> tuple[str, str]:
        """Returns the prompt and the completion that a text is trained with."""
        if rng.random() < self.task.infill:
            # A random site, so that elements are masked in proportion to their atoms.
            symbol = crystal.symbols[rng.integers(len(crystal.symbols))]
            masked = mask_element(text, symbol, substring=self.text_format.version == "paper")
            return infill_prompt(masked), symbol
        conditions = draw_conditions(properties_of(record), rng) if self.task.conditions else {}
        return generation_prompt(conditions), text
