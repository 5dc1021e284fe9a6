"""Converts the tokenizer inside a GGUF file to Hugging Face's tokenizer files.

Two kinds are supported. `llama` is SentencePiece's BPE: GGUF states its pieces, scores and types, and everything else
(no normalisation, spaces as ▁) is the same for every model that llama.cpp reads as this kind. `gpt2` is byte-level BPE.
For it, GGUF only names the pre-tokenizer, which splits text before the merges (`tokenizer.ggml.pre`), without
describing it; `PRE_TOKENIZERS` has the supported ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers

from crystal_jax.errors import UserError

_protocol: Any = sentencepiece_model_pb2  # its classes are created at import
# GGUF's token types, which are SentencePiece's.
_CONTROL, _BYTE = 3, 6
_ROLES: Mapping[str, str] = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
}


def _smollm() -> pre_tokenizers.PreTokenizer:
    """Splits single digits, then GPT-2's words."""
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {"smollm": _smollm, "gpt-2": _gpt2}


def tokenizer_files(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns names and contents of the tokenizer's files; empty if the GGUF file has no tokenizer. Writes nothing.

    Args:
        fields: metadata of a GGUF file: values of `tokenizer.ggml.*`.

    Raises:
        UserError: the tokenizer is of another kind, or incomplete.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind is None:
        return {}
    cut = fields.get("tokenizer.ggml.pre", "")
    try:
        if kind == "llama":
            name, content = "tokenizer.model", _sentencepiece(fields)
        elif kind == "gpt2" and cut in PRE_TOKENIZERS:
            name, content = "tokenizer.json", _byte_level(fields, cut)
        else:
            raise UserError(
                f"the GGUF file's tokenizer is {kind!r} with cuts {cut!r}; 'llama', and 'gpt2' with one of "
                f"{', '.join(map(repr, PRE_TOKENIZERS))}, can be converted"
            )
        return {name: content, "tokenizer_config.json": _config(fields, kind)}
    except KeyError as error:
        raise UserError(f"the GGUF file's tokenizer lacks the metadata {error.args[0]}") from None
    except UserError:
        raise
    except Exception as error:  # protobuf, sentencepiece and tokenizers have no common error type
        raise UserError(f"the GGUF file's tokenizer is damaged: {' '.join(str(error).split())}") from error


def _sentencepiece(fields: Mapping[str, Any]) -> bytes:
    """Returns a `tokenizer.model` with the pieces and the settings for their use, without training settings."""
    columns = [fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")]
    pieces = [
        _protocol.ModelProto.SentencePiece(piece=token, score=score, type=kind)
        for token, score, kind in zip(*columns, strict=True)
    ]
    model = _protocol.ModelProto(pieces=pieces)
    model.trainer_spec.model_type = _protocol.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.byte_fallback = _BYTE in columns[-1]
    model.trainer_spec.pad_id = -1
    for role, key in _ROLES.items():
        if key in fields:
            setattr(model.trainer_spec, f"{role}_id", fields[key])
            setattr(model.trainer_spec, f"{role}_piece", columns[0][fields[key]])
    model.normalizer_spec.name = "identity"
    # llama.cpp's defaults.
    model.normalizer_spec.add_dummy_prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = fields.get("tokenizer.ggml.remove_extra_whitespaces", False)
    content = model.SerializeToString()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    return content


def _byte_level(fields: Mapping[str, Any], cut: str) -> bytes:
    """Returns a `tokenizer.json`."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    bpe = tokenizers.Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = PRE_TOKENIZERS[cut]()
    bpe.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    bpe.add_special_tokens([token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL])
    return bpe.to_str(pretty=True).encode()


def _config(fields: Mapping[str, Any], kind: str) -> bytes:
    """Returns a `tokenizer_config.json`: the special tokens, and the transformers class that reads the other file."""
    tokens = fields["tokenizer.ggml.tokens"]
    config = {f"{role}_token": tokens[fields[key]] for role, key in _ROLES.items() if key in fields}
    config["tokenizer_class"] = "LlamaTokenizer" if kind == "llama" else "PreTrainedTokenizerFast"
    return (json.dumps(config, indent=2) + "\n").encode()
