"""Classifies the tokens of a crystal's text: composition, lattice, element, coordinate.

The class depends on the position of a token, not on its id, because a digit of LLaMA-2 can occur anywhere.
"""

from __future__ import annotations

import functools
from typing import Any

from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS
from crystal_jax.text.tokenizer import Tokenizer

CLASSES = ("other", "lattice", "element", "coordinate", "end", "composition")  # prompts are "other", EOS is "end"
OTHER, LATTICE, ELEMENT, COORDINATE, END, COMPOSITION = range(len(CLASSES))


def token_classes(tokenizer: Tokenizer, text_format: TextFormat, completion: str, number: int) -> list[int]:
    """Returns the class of each token of a completion: a crystal, or the symbol that answers an infilling prompt. EOS
    is not included.

    Args:
        tokenizer: the tokenizer of the completion.
        text_format: the format of the crystal.
        completion: the text.
        number: number of the completion's tokens after a prompt; without a prompt, SentencePiece would add a space.

    Raises:
        RequestError: the tokenizer does not tokenise the crystal field by field.
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
        raise RequestError(f"The {tokenizer.name} tokenizer does not write a crystal field by field: {completion!r}")
    return [COMPOSITION] * before + classes


def _class(place: int) -> int:
    """Returns the class of the word with this index in a crystal."""
    if place < LATTICE_WORDS:
        return LATTICE
    return COORDINATE if (place - LATTICE_WORDS) % ATOM_WORDS else ELEMENT


@functools.cache  # a few thousand values, each requested many times
def _tokens_in(tokenizer: Any, separator: str, value: str) -> int:
    return len(tokenizer.spell(separator, value))
