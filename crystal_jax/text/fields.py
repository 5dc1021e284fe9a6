"""Which part of a crystal each token of its text writes: the composition, the lattice, an element, a coordinate.

The id of a token does not say it, since a digit of LLaMA-2 may stand anywhere; its place does.
"""

from __future__ import annotations

import functools
from typing import Any

from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS
from crystal_jax.text.tokenizer import Tokenizer

CLASSES = ("other", "lattice", "element", "coordinate", "end", "composition")  # prompts are "other", EOS is "end"
OTHER, LATTICE, ELEMENT, COORDINATE, END, COMPOSITION = range(len(CLASSES))


def token_classes(tokenizer: Tokenizer, text_format: TextFormat, completion: str, number: int) -> list[int]:
    """The class of each token of a completion: a crystal, or the symbol that an infilling asks for. No EOS.

    Args:
        tokenizer: Its tokenizer.
        text_format: The crystal's.
        completion: The text.
        number: Of its tokens after a prompt; alone, SentencePiece would put a space before it.

    Raises:
        ValueError: the tokenizer writes the crystal in another way than field by field.
    """
    if "\n" not in completion:
        return [ELEMENT] * number
    asked: Any = tokenizer
    words, layout = text_format.words(completion), text_format.layout
    classes = [
        _class(place)
        for place, word in enumerate(words)
        for _ in range(_tokens_in(asked, layout.separator(place), word.value))
    ]
    before = number - len(classes)
    if before < 0 or (before > 0) != (layout.block is not None):
        raise ValueError(f"The {tokenizer.name} tokenizer does not write a crystal field by field: {completion!r}")
    return [COMPOSITION] * before + classes


def _class(place: int) -> int:
    """Of the word at this place of a crystal."""
    if place < LATTICE_WORDS:
        return LATTICE
    return COORDINATE if (place - LATTICE_WORDS) % ATOM_WORDS else ELEMENT


@functools.cache  # a few thousand values, each asked for again and again
def _tokens_in(tokenizer: Any, separator: str, value: str) -> int:
    return len(tokenizer.spell(separator, value))
