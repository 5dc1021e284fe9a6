"""Implements six tokenizers behind one protocol.

`Llama2Tokenizer` is LLaMA-2's SentencePiece model, `Llama2CrystalTokenizer` the same with added tokens for crystals,
and `HuggingFaceTokenizer` any `tokenizer.json`. `CharacterTokenizer` (LM-CH) and `AtomCoordinateTokenizer` (LM-AC)
follow Flam-Shepherd & Aspuru-Guzik (arXiv:2305.05708) and need no file: they have one token per character, or one token
per element, lattice number and coordinate. `WyckoffTokenizer` (text/wyckoff_tokenizer.py) is the same for texts by
symmetry.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import sentencepiece
import tokenizers

from crystal_jax.errors import RequestError, UserError
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.layout import MASK, PLAIN
from crystal_jax.text.prompts import PHRASES
from crystal_jax.text.wyckoff_tokenizer import WyckoffTokenizer


@runtime_checkable
class Tokenizer(Protocol):
    """Converts text to token ids and back. `encode` adds neither BOS nor EOS; `decode(encode(text)) == text`."""

    name: str
    vocab_size: int
    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Returns the token ids of a prompt, a crystal, or a prompt followed by its completion."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids; BOS and EOS are skipped."""
        ...

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        """Returns the ids of `separator + value` inside a crystal's text.

        The grammar is built from these ids, so it accepts only the canonical tokenisation.
        """
        ...


class Llama2Tokenizer:
    """LLaMA-2's SentencePiece vocabulary of 32,000 pieces, read from a `tokenizer.model`.

    Every digit, space and newline of a crystal is a token; 44 of the first 94 element symbols are two tokens.
    """

    name = "llama2"

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(f"no tokenizer at {path}; give the tokenizer.model that comes with LLaMA-2's weights")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is not a SentencePiece model: {error}") from error
        self.vocab_size = self._pieces.vocab_size()
        self.bos_id, self.eos_id = self._pieces.bos_id(), self._pieces.eos_id()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._pieces.encode(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        text: str = self._pieces.decode([i for i in ids if i not in (self.bos_id, self.eos_id)])
        return text

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        return _spell_in_context(self, separator, value)


class Llama2CrystalTokenizer:
    """LLaMA-2's 32,000 pieces, followed by added tokens for the fields of a crystal (`FIELDS`).

    Every number and element of a crystal is one added token, as in `AtomCoordinateTokenizer`. Prompts, and the formulas
    in them, are tokenised with LLaMA-2's pieces. This is the paper's ablation: the added tokens share nothing with the
    digits and letters that a pretrained model knows. Under LoRA adapters their embeddings would keep their initial
    values, so this tokenizer is for full training.
    """

    name = "llama2_crystal"

    def __init__(self, path: Path):
        self._pieces = Llama2Tokenizer(path)
        self.bos_id, self.eos_id = self._pieces.bos_id, self._pieces.eos_id
        self._first = self._pieces.vocab_size
        self._field_ids = {field: i for i, field in enumerate(FIELDS, start=self._first)}
        self.vocab_size = self._first + len(FIELDS)
        # SentencePiece adds a space at the beginning of a text.
        self._space = self._pieces.encode("\n")[:-1]

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in _OWN.finditer(text):
            ids += self._between(text[end : match.start()], at_start=end == 0)
            ids += [_lookup(self._field_ids, field) for field in _FIELD.findall(match.group())]
            end = match.end()
        return ids + self._between(text[end:], at_start=end == 0)

    def _between(self, text: str, *, at_start: bool) -> list[int]:
        ids = self._pieces.encode(text)
        # The text after a crystal begins with a newline.
        return ids if at_start or not text else ids[len(self._space) :]

    def decode(self, ids: list[int]) -> str:
        kept = [i for i in ids if i not in (self.bos_id, self.eos_id)]
        text = ""
        for own, group in itertools.groupby(kept, key=lambda i: i >= self._first):
            block = list(group)
            if own:
                text += _joined([FIELDS[i - self._first] for i in block])
            else:
                text += self._pieces.decode([*self._space, *block] if text else block)
        return text

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        return (_lookup(self._field_ids, value),)


class HuggingFaceTokenizer:
    """Tokenizer of a `tokenizer.json`, such as the byte-level BPE of SmolLM2 or LLaMA-3, read by the package
    `tokenizers`.

    BOS and EOS are those of `tokenizer_config.json` in the same folder; without a BOS, EOS is used in its place.
    """

    name = "huggingface"

    def __init__(self, path: Path):
        try:
            self._pieces = tokenizers.Tokenizer.from_file(str(path))
            special = json.loads((path.parent / "tokenizer_config.json").read_text())
        except FileNotFoundError as error:
            raise UserError(f"no {error.filename}; a tokenizer is tokenizer.json and tokenizer_config.json") from None
        except Exception as error:  # the package raises bare exceptions
            raise UserError(f"{path} is no tokenizer: {str(error).splitlines()[0]}") from error
        self.vocab_size = self._pieces.get_vocab_size()
        eos, bos = (self._special(path, special.get(key)) for key in ("eos_token", "bos_token"))
        if eos is None:
            raise UserError(f"{path.parent / 'tokenizer_config.json'} states no eos_token")
        self.eos_id, self.bos_id = eos, eos if bos is None else bos

    def _special(self, path: Path, token: str | dict[str, str] | None) -> int | None:
        if token is None:
            return None
        content = token if isinstance(token, str) else token["content"]
        if (number := self._pieces.token_to_id(content)) is None:
            raise UserError(f"{path} lacks the special token {content!r} that its tokenizer_config.json states")
        return number

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._pieces.decode([i for i in ids if i not in (self.bos_id, self.eos_id)], skip_special_tokens=False)

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        return _spell_in_context(self, separator, value)


class CharacterTokenizer:
    """LM-CH: one token per printable ASCII character or newline."""

    name = "character"
    bos_id, eos_id = 0, 1

    def __init__(self) -> None:
        self._ids = {c: i for i, c in enumerate(_PRINTABLE, start=2)}
        self.vocab_size = 2 + len(self._ids)

    def encode(self, text: str) -> list[int]:
        return [_lookup(self._ids, c) for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(_PRINTABLE[i - 2] for i in ids if i not in (self.bos_id, self.eos_id))

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        return tuple(self.encode(separator + value))


class AtomCoordinateTokenizer:
    """LM-AC: one token per element, lattice length (1.0 … 59.9 Å), angle (1 … 179°) and coordinate (0.00 … 1.00).

    The lines of a crystal have a fixed number of fields, so spaces and newlines need no tokens: a crystal of n atoms
    has 6 + 4 n tokens. A composition before it has two tokens per element; a number of atoms shares its token with the
    angle of the same spelling. Prompts are tokenised with one token per fixed phrase, element tokens in formulas, and
    characters for the rest. Cartesian coordinates are outside the vocabulary.
    """

    name = "atom_coordinate"
    bos_id, eos_id = 0, 1

    def __init__(self) -> None:
        texts = [*PHRASES, *_PRINTABLE]
        # The angle "5" and the character "5" of a formula are different tokens; an element has one token for both.
        self._field_ids = {field: i for i, field in enumerate(FIELDS, start=2)}
        self._text_ids = {piece: i for i, piece in enumerate(texts, start=2 + len(FIELDS))}
        self._text_ids |= {symbol: self._field_ids[symbol] for symbol in (*ELEMENTS, MASK)}
        self._strings = ["", "", *FIELDS, *texts]
        self._fields = range(2, 2 + len(FIELDS))
        self.vocab_size = len(self._strings)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for match in _PIECE.finditer(text):
            if match.lastgroup == "crystal":
                ids += [_lookup(self._field_ids, field) for field in _FIELD.findall(match.group())]
            else:
                ids.append(_lookup(self._text_ids, match.group()))
        return ids

    def decode(self, ids: list[int]) -> str:
        kept = [i for i in ids if i not in (self.bos_id, self.eos_id)]
        text = ""
        for is_field, group in itertools.groupby(kept, key=self._fields.__contains__):
            strings = [self._strings[i] for i in group]
            text += _joined(strings) if is_field else "".join(strings)
        return text

    def spell(self, separator: str, value: str) -> tuple[int, ...]:
        return (_lookup(self._field_ids, value),)


def _joined(fields: Sequence[str]) -> str:
    """Joins fields: a crystal, with lengths first or after a composition; the elements of a formula; or a single
    element.
    """
    start = next((i for i, field in enumerate(fields) if field in _LENGTHS), len(fields))
    line = "".join(fields[:start])
    return line + "\n" * (0 < start < len(fields)) + PLAIN.join(fields[start:])


def _spell_in_context(tokenizer: Tokenizer, separator: str, value: str) -> tuple[int, ...]:
    """Returns the ids that a field adds to a preceding line, because SentencePiece adds a space at the start of a text.

    Raises:
        RequestError: the field changes the tokenisation of the preceding line, so it has no ids of its own.
    """
    context = "\n0" if separator else "\n"
    before, ids = tokenizer.encode(context), tokenizer.encode(context + separator + value)
    if ids[: len(before)] != before:
        raise RequestError(f"The {tokenizer.name} tokenizer joins {separator + value!r} to what stands before")
    return tuple(ids[len(before) :])


def load_tokenizer(name: str, path: Path | None = None) -> Tokenizer:
    """Loads a tokenizer by name.

    atom_coordinate, character and wyckoff need no file; llama2, llama2_crystal and huggingface do.
    """
    from_files: dict[str, Callable[[Path], Tokenizer]] = {
        "llama2": Llama2Tokenizer,
        "llama2_crystal": Llama2CrystalTokenizer,
        "huggingface": HuggingFaceTokenizer,
    }
    if name in from_files:
        if path is None:
            file = "tokenizer.json" if name == "huggingface" else "tokenizer.model"
            raise UserError(f"the {name} tokenizer needs a file: --config.tokenizer.path=/path/to/{file}")
        return from_files[name](Path(path))
    compact: dict[str, Callable[[], Tokenizer]] = {
        t.name: t for t in (AtomCoordinateTokenizer, CharacterTokenizer, WyckoffTokenizer)
    }
    if name not in compact:
        raise UserError(f"no tokenizer {name!r}; there are: {', '.join(sorted([*compact, *from_files]))}")
    return compact[name]()


def encode_example(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Returns the ids of a prompt and of its completion, tokenised together as the model sees them.

    Raises:
        RequestError: the tokenizer joins the end of the prompt and the beginning of the completion into one token.
    """
    head = tokenizer.encode(prompt)
    whole = tokenizer.encode(prompt + completion)
    if whole[: len(head)] != head:
        raise RequestError(f"The {tokenizer.name} tokenizer does not split between prompt and completion")
    return head, whole[len(head) :]


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """Returns BOS and the ids of a prompt, tokenised as in training, where a completion always follows."""
    return (tokenizer.bos_id, *encode_example(tokenizer, prompt, "0")[0])


def completion_text(tokenizer: Tokenizer, prompt: str, head: Sequence[int], ids: Sequence[int]) -> str:
    """Decodes the completion `ids` of a prompt whose `prompt_ids` are `head`; decodes both together, as in training."""
    return tokenizer.decode([*head[1:], *ids]).removeprefix(prompt)


_PRINTABLE = "\n" + "".join(chr(i) for i in range(32, 127))
_SYMBOL = "|".join(sorted([*ELEMENTS, re.escape(MASK)], key=len, reverse=True))
# Lengths in Å, angles in degrees, fractional coordinates, elements: no two have the same spelling.
_LENGTHS = tuple(f"{i / 10:.1f}" for i in range(10, 600))
FIELDS = (*_LENGTHS, *map(str, range(1, 180)), *(f"{i / 100:.2f}" for i in range(101)), *ELEMENTS, MASK)
_THREE = [" ".join([number] * 3) for number in (r"\d+\.\d", r"\d+", r"\d\.\d\d")]
# A complete crystal on lines of its own, with an optional composition line.
_LINE = rf"(?:(?:(?:{_SYMBOL})\d+)+\n)?"
_CRYSTAL = rf"(?P<crystal>(?<![^\n]){_LINE}{_THREE[0]}\n{_THREE[1]}(?:\n(?:{_SYMBOL})\n{_THREE[2]})+(?![^\n]))"
_FIELD = re.compile(rf"{_SYMBOL}|[\d.]+")
# Alternatives in order: a crystal, a phrase, an element, one character.
_PIECE = re.compile(rf"{_CRYSTAL}|{'|'.join(map(re.escape, PHRASES))}|{_SYMBOL}|(?s:.)")
# A crystal, or an element alone on its line (the answer to an infilling prompt).
_OWN = re.compile(rf"{_CRYSTAL}|(?<![^\n])(?:{_SYMBOL})(?![^\n])")


def _lookup(ids: dict[str, int], piece: str) -> int:
    if piece not in ids:
        raise RequestError(f"{piece!r} is not in the vocabulary")
    return ids[piece]
