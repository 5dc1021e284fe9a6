"""The byte-level BPE tokenizer inside a GGUF file, as the two files that Hugging Face keeps it in.

GGUF names how text is cut before the merges (`tokenizer.ggml.pre`) instead of describing it; the cuts known here are
in `PRE_TOKENIZERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from crystal_jax.errors import UserError
from crystal_jax.files import write_text

_CONTROL = 3  # GGUF's token type of special tokens


def _smollm() -> pre_tokenizers.PreTokenizer:
    """Single digits, then GPT-2's words."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {"smollm": _smollm, "gpt-2": _gpt2}


def write_tokenizer(fields: Mapping[str, Any], directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json.

    Args:
        fields: The metadata of a GGUF file: values of `tokenizer.ggml.*`.
        directory: Where the two files go.

    Raises:
        UserError: the file holds a tokenizer of another kind.
    """
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "")
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        raise UserError(
            f"the GGUF file's tokenizer is {kind!r} with cuts {cut!r}; 'gpt2' with one of "
            f"{', '.join(map(repr, PRE_TOKENIZERS))} can be converted"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    bpe = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = PRE_TOKENIZERS[cut]()
    bpe.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL]
    bpe.add_special_tokens(special)
    bpe.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "tokenizer.ggml.bos_token_id", "eos_token": "tokenizer.ggml.eos_token_id"}
    config = {name: tokens[fields[key]] for name, key in names.items() if key in fields}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_text(directory / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
