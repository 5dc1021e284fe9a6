"""Which part of a crystal each token of its text writes: the lattice, an element, a coordinate.

The id of a token does not say it, since a digit of LLaMA-2 may stand anywhere; its place does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from crystal_jax.text.tokenizer import Tokenizer

CLASSES = ("other", "lattice", "element", "coordinate", "end")  # prompts are "other", EOS is "end"
OTHER, LATTICE, ELEMENT, COORDINATE, END = range(len(CLASSES))


def token_classes(tokenizer: Tokenizer, completion: str, number: int) -> list[int]:
    """The class of each token of a completion: a crystal, or the symbol that an infilling asks for. No EOS.

    Args:
        tokenizer: Its tokenizer.
        completion: The text.
        number: Of its tokens after a prompt; alone, SentencePiece would put a space before it.

    Raises:
        ValueError: the tokenizer writes the crystal in another way than field by field.
    """
    if "\n" not in completion:
        return [ELEMENT] * number
    asked: Any = tokenizer
    classes = [kind for kind, *field in _fields(completion) for _ in range(_tokens_in(asked, *field))]
    if len(classes) != number:
        raise ValueError(f"The {tokenizer.name} tokenizer does not write a crystal field by field: {completion!r}")
    return classes


def _fields(crystal: str) -> Iterator[tuple[int, str, str]]:
    """Class, separator and value of every field."""
    for row, line in enumerate(crystal.split("\n")):
        kind = LATTICE if row < 2 else ELEMENT if row % 2 == 0 else COORDINATE
        for place, value in enumerate(line.split(" ")):
            yield kind, " " if place else "\n" if row else "", value


@functools.cache  # a few thousand values, each asked for again and again
def _tokens_in(tokenizer: Any, separator: str, value: str) -> int:
    return len(tokenizer.spell(separator, value))
