"""Converts GPT-2's byte-level BPE from a file of ranks, tiktoken's format, to a `tokenizer.json`.

A line of such a file has a token's bytes in base64 and its rank, which is its id. The file does not state which two
tokens a merge joins. They follow from the ranks: they are the parts into which all earlier merges split the token.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from crystal_jax.errors import UserError
from crystal_jax.storage.files import write_text

END_OF_TEXT = "<|endoftext|>"  # GPT-2's only special token, with the last id


def write_tokenizer(ranks: Path, directory: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` of a tokenizer like GPT-2's.

    Args:
        ranks: a `.tiktoken` file.
        directory: output folder; created if it does not exist.

    Raises:
        UserError: the file is not a `.tiktoken` file.
    """
    try:
        lines = [line.split() for line in ranks.read_text().splitlines() if line]
        by_bytes = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (OSError, ValueError, binascii.Error) as error:
        raise UserError(f"{ranks} is no file of token ranks: {error}") from error
    if sorted(by_bytes.values()) != list(range(len(lines))) or not all(bytes([i]) in by_bytes for i in range(256)):
        raise UserError(f"{ranks} does not rank all bytes and some joined ones from 0 on, each once")
    letters = _letters()
    spell = {token: "".join(letters[byte] for byte in token) for token in by_bytes}
    joined = sorted((token for token in by_bytes if len(token) > 1), key=by_bytes.__getitem__)
    merges = [(spell[left], spell[right]) for left, right in (_parts(token, by_bytes) for token in joined)]
    vocabulary = {spell[token]: rank for token, rank in by_bytes.items()}
    bpe = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([END_OF_TEXT])
    directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "tokenizer.json", bpe.to_str(pretty=True) + "\n")
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "tokenizer_class": "GPT2TokenizerFast"}
    write_text(directory / "tokenizer_config.json", json.dumps(special, indent=2) + "\n")


def _parts(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Returns the two tokens whose merge is this token."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        rank, place = min(
            (ranks.get(left + right, len(ranks)), i) for i, (left, right) in enumerate(itertools.pairwise(parts))
        )
        if rank >= ranks[token]:
            raise UserError(f"the token {token!r} of rank {ranks[token]} is no merge of two tokens before it")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _letters() -> dict[int, str]:
    """Returns the printable character of each byte in a byte-level vocabulary: its own, or one from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
