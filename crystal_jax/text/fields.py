"""Classifies the tokens of a crystal's text: composition, lattice, element, coordinate; space group and position.

The class depends on the position of a token, not on its id, because a digit of LLaMA-2 can occur anywhere.
"""

from __future__ import annotations

import functools
from typing import Any

from crystal_jax.errors import RequestError
from crystal_jax.text.crystal_text import TextFormat
from crystal_jax.text.layout import ATOM_WORDS, LATTICE_WORDS
from crystal_jax.text.tokenizer import Tokenizer

# Prompts are "other", EOS is "end".
CLASSES = ("other", "lattice", "element", "coordinate", "end", "composition", "spacegroup", "position")
OTHER, LATTICE, ELEMENT, COORDINATE, END, COMPOSITION, SPACEGROUP, POSITION = range(len(CLASSES))


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
    layout = text_format.layout
    words = _wyckoff_words(completion) if text_format.version == "wyckoff" else _words(text_format, completion)
    classes = [kind for kind, separator, value in words for _ in range(_tokens_in(asked, separator, value))]
    before = number - len(classes)
    if before < 0 or (before > 0) != (layout.block is not None):
        raise RequestError(f"The {tokenizer.name} tokenizer does not write a crystal field by field: {completion!r}")
    return [COMPOSITION] * before + classes


def _words(text_format: TextFormat, completion: str) -> list[tuple[int, str, str]]:
    """Returns class, separator before it, and value of each word after the composition line."""
    words, layout = text_format.words(completion), text_format.layout
    return [(_class(place), layout.separator(place), word.value) for place, word in enumerate(words)]


def _wyckoff_words(completion: str) -> list[tuple[int, str, str]]:
    """Returns the same for a text by symmetry; its space group and positions are classes of their own."""
    found: list[tuple[int, str, str]] = []
    for line in completion.split("\n")[1:]:
        first, *others = line.split(" ")
        if first[0].isalpha():
            position, *coordinates = others
            found += [(ELEMENT, "\n", first), (POSITION, " ", position)]
            found += [(COORDINATE, " ", value) for value in coordinates]
        else:
            found.append((LATTICE if found else SPACEGROUP, "\n", first))
            found += [(LATTICE, " ", value) for value in others]
    return found


def _class(place: int) -> int:
    """Returns the class of the word with this index in a crystal."""
    if place < LATTICE_WORDS:
        return LATTICE
    return COORDINATE if (place - LATTICE_WORDS) % ATOM_WORDS else ELEMENT


@functools.cache  # a few thousand values, each requested many times
def _tokens_in(tokenizer: Any, separator: str, value: str) -> int:
    return len(tokenizer.spell(separator, value))
