import base64
import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from crystal_jax.errors import UserError
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tiktoken import END_OF_TEXT, write_tokenizer
from crystal_jax.text.tokenizer import load_tokenizer
from tests.text.test_crystal_text import HALITE


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A byte-level BPE with GPT-2's cuts, and the folder of what is made of its ranks."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([HALITE, generation_prompt(), "Mg\nMg\nTe\nLiFePO4 ångström 90 90 120"], trainer)
    bytes_of = {pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(i))[0][0]: i for i in range(128)}
    # What the letters above ASCII stand for follows from the UTF-8 of letters that consist of two of them.
    for code in range(128, 2048):
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(chr(code))
        bytes_of |= dict(zip("".join(word for word, _ in letters), chr(code).encode(), strict=True))
    unused = iter({*range(256)} - set(bytes_of.values()))
    bytes_of |= {letter: next(unused) for letter in sorted(alphabet) if letter not in bytes_of}
    folder = tmp_path_factory.mktemp("tiktoken")
    ranks = {bytes(bytes_of[letter] for letter in token): i for token, i in bpe.get_vocab().items()}
    lines = (
        f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=lambda x: x[1])
    )
    (folder / "ranks.tiktoken").write_text("".join(lines))
    write_tokenizer(folder / "ranks.tiktoken", folder)
    return bpe, folder


@given(text=st.text(max_size=30))
def test_it_encodes_as_the_tokenizer_that_the_ranks_are_of(trained, text):
    bpe, folder = trained
    found = load_tokenizer("huggingface", folder / "tokenizer.json")
    assert found.encode(text) == bpe.encode(text).ids
    assert found.decode(found.encode(text)) == text


def test_words_of_crystals_are_joined_as_there(trained):
    bpe, folder = trained
    found = load_tokenizer("huggingface", folder / "tokenizer.json")
    assert found.encode(generation_prompt() + HALITE) == bpe.encode(generation_prompt() + HALITE).ids
    assert len(found.encode(generation_prompt())) < len(generation_prompt()) / 3
    assert found.bos_id == found.eos_id == found.vocab_size - 1
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == END_OF_TEXT


@pytest.mark.parametrize(
    ("text", "message"),
    [("%% 0\n", "no file of token ranks"), ("QQ== 0\n", "does not rank all bytes"), (None, "no file of token ranks")],
)
def test_other_files_are_refused(tmp_path, text, message):
    if text is not None:
        (tmp_path / "ranks").write_text(text)
    with pytest.raises(UserError, match=message):
        write_tokenizer(tmp_path / "ranks", tmp_path)


def test_a_token_that_is_no_merge_is_named(tmp_path):
    ranks = [*(bytes([i]) for i in range(256)), b"abc"]
    (tmp_path / "ranks").write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(ranks)))
    with pytest.raises(UserError, match="the token b'abc' of rank 256 is no merge"):
        write_tokenizer(tmp_path / "ranks", tmp_path)
