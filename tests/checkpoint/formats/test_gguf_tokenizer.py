"""Tokenizers out of GGUF files that the `gguf` package wrote give the ids of the tokenizers that they were made of."""

import json

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2 as protocol

from crystal_jax.checkpoint.formats.gguf_tokenizer import PRE_TOKENIZERS
from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.run import convert
from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.prompts import MASK, generation_prompt, infill_prompt, mask_element
from crystal_jax.text.tokenizer import load_tokenizer
from tests.text.test_crystal_text import HALITE

pytest.importorskip("gguf")

from tests.checkpoint.formats.gguf_files import WIDE, write_gguf

# Spaces at the edges and in runs, other scripts, characters that are no piece, special tokens spelled out.
TEXTS = (
    *("", " ", "  a  b ", "\n\n \n", "Å α é 水 \U0001f48e", "e\u0301 ﬁ ½", "</s><s>", "\x01\x7f", "1234567890" * 20),
    generation_prompt() + HALITE,
    infill_prompt(mask_element(HALITE, "Cl")),
    *(f"90 90 90\n{symbol}\n0.25 0.50 0.73" for symbol in (*ELEMENTS, MASK)),
)


def byte_level(cut):
    """A tokenizer trained on crystals, with two special tokens."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = PRE_TOKENIZERS[cut]()
    trained.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<start>", "<end>"],
        show_progress=False,
    )
    trained.train_from_iterator([HALITE, generation_prompt(), "Mg\nMg\nTe\nLiFePO4"], trainer)
    return trained


def states_byte_level(trained, cut):
    """Adds to a GGUF file what llama.cpp's converter states of such a tokenizer."""

    def add(writer):
        stated = json.loads(trained.to_str())["model"]
        tokens = sorted(stated["vocab"], key=stated["vocab"].get)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut)
        writer.add_token_list(tokens)
        writer.add_token_types([3 if token in ("<start>", "<end>") else 1 for token in tokens])
        writer.add_token_merges([" ".join(pair) for pair in stated["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)

    return add


def states_sentencepiece(model, /, **changes):
    """The same of a SentencePiece model; `changes` replace or, where None, leave out."""

    def add(writer):
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        ids = range(pieces.vocab_size())
        kinds = ((pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_unused, 5), (pieces.is_byte, 6))
        stated = {
            "model": "llama",
            "token_list": [pieces.id_to_piece(i) for i in ids],
            "scores": [pieces.get_score(i) for i in ids],
            "types": [next((kind for is_kind, kind in kinds if is_kind(i)), 1) for i in ids],
        } | changes
        add_of = {
            "model": writer.add_tokenizer_model,
            "token_list": writer.add_token_list,
            "scores": writer.add_token_scores,
            "types": writer.add_token_types,
            "bos": writer.add_bos_token_id,
            "space": writer.add_add_space_prefix,
        }
        for key, value in stated.items():
            if value is not None:
                add_of[key](value)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)

    return add


@pytest.fixture(params=["tokenizer/tokenizer.model", "weights/stories260K/tok512.model"], ids=["32000", "512"])
def model(shared, request):
    """LLaMA-2's tokenizer, and one of 512 pieces."""
    return shared / request.param


def converted(wide, vocabulary, folder):
    write_gguf(folder / "model.gguf", WIDE, wide, vocabulary=vocabulary)
    convert("gguf", "hf", input=folder / "model.gguf", output=folder / "hf", dtype="float32")
    return folder / "hf"


@pytest.mark.parametrize("cut", PRE_TOKENIZERS)
def test_byte_level_ids_are_the_sources(wide, tmp_path, cut):
    trained = byte_level(cut)
    ours = load_tokenizer("huggingface", converted(wide, states_byte_level(trained, cut), tmp_path) / "tokenizer.json")
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (trained.get_vocab_size(), 0, 1)
    for text in TEXTS:
        ids = trained.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == trained.decode(ids, skip_special_tokens=False)


def test_sentencepiece_ids_are_the_sources(wide, model, tmp_path):
    folder = converted(wide, states_sentencepiece(model), tmp_path)
    ours, theirs = (load_tokenizer("llama2", path) for path in (folder / "tokenizer.model", model))
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.vocab_size, theirs.bos_id, theirs.eos_id)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert pieces(folder / "tokenizer.model") == pieces(model)


def pieces(path):
    return [
        (piece.piece, piece.score, piece.type) for piece in protocol.ModelProto.FromString(path.read_bytes()).pieces
    ]


def test_transformers_reads_the_sentencepiece_folder(wide, shared, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = shared / "tokenizer/tokenizer.model"
    theirs = transformers.AutoTokenizer.from_pretrained(converted(wide, states_sentencepiece(model), tmp_path))
    ours = load_tokenizer("llama2", model)
    for text in TEXTS[9:]:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (1, 2)


def test_a_prefix_that_is_not_added(wide, shared, tmp_path):
    model = shared / "tokenizer/tokenizer.model"
    ours = load_tokenizer(
        "llama2", converted(wide, states_sentencepiece(model, space=False), tmp_path) / "tokenizer.model"
    )
    assert ours.encode("the") == load_tokenizer("llama2", model).encode("\nthe")[2:]


def test_a_file_without_a_tokenizer_is_a_model(wide, tmp_path):
    folder = converted(wide, None, tmp_path)
    assert not list(folder.glob("tokenizer*"))
    assert HfSource(folder).config.vocab_size == WIDE.vocab_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "t5"}, "tokenizer is 't5' with cuts ''; 'llama', and 'gpt2' with one of 'smollm', 'gpt-2'"),
        ({"model": "gpt2"}, "tokenizer is 'gpt2' with cuts ''"),
        ({"scores": None}, r"lacks the metadata tokenizer\.ggml\.scores"),
        ({"types": [1] * 512}, "damaged: "),  # no unknown piece
        ({"types": [2, 3, 3]}, "damaged: "),
        ({"token_list": ["same"] * 512}, "damaged: "),
    ],
    ids=["unigram", "no-cut", "no-scores", "no-unknown", "short", "doubled"],
)
def test_a_tokenizer_that_cannot_be_converted_stops_before_anything_is_written(
    wide, shared, tmp_path, changes, message
):
    model = shared / "weights/stories260K/tok512.model"
    with pytest.raises(UserError, match=message) as caught:
        converted(wide, states_sentencepiece(model, **changes), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hf").exists()
