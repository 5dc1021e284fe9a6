import struct

import numpy as np
import pytest

from crystal_jax.checkpoint.formats.easylm import write_easylm
from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.formats.llama2c import Llama2cSource
from crystal_jax.errors import UserError
from tests.checkpoint.sources import RandomSource, assert_same, metas_tensors
from tests.experiments import TINY

ORDER = (
    *("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo"),
    *("ffn_norm", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
)
SEQ_LEN = 11


@pytest.fixture
def untied(tmp_path):
    """A llama2.c file with GQA and an output projection of its own."""
    write_easylm(tmp_path / "easylm", RandomSource(TINY))
    tensors = metas_tensors(tmp_path / "easylm")
    blocks = [f"layers.{i}.{part}.weight" for part in ORDER for i in range(TINY.num_layers)]
    arrays = [tensors[name] for name in ("tok_embeddings.weight", *blocks, "norm.weight")]
    rope = np.full((2, SEQ_LEN, TINY.head_dim // 2), np.nan, np.float32)
    header = (TINY.embed_dim, TINY.mlp_dim, TINY.num_layers, TINY.num_heads, TINY.num_kv_heads, -TINY.vocab_size)
    path = tmp_path / "model.bin"
    content = [struct.pack("<7i", *header, SEQ_LEN), *(a.tobytes() for a in (*arrays, rope, tensors["output.weight"]))]
    path.write_bytes(b"".join(content))
    return path


def test_a_real_model(shared):
    stories = shared / "weights" / "stories260K"
    source, hf = Llama2cSource(stories / "stories260K.bin"), HfSource(stories / "stories260K-hf")
    assert source.config == hf.config
    assert_same(source, hf)


def test_an_untied_model(untied):
    source = Llama2cSource(untied)
    assert not source.config.tie_embeddings
    assert source.config.num_kv_heads == TINY.num_kv_heads
    assert_same(source, RandomSource(TINY))


@pytest.mark.parametrize("change", [-4, -1, 1, 4])
def test_the_length_must_be_exact(untied, change):
    content = untied.read_bytes()
    untied.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(UserError, match=f"has {len(content) + change} bytes; its header asks for {len(content)}"):
        Llama2cSource(untied)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (0, 0x616B3432, "later version"),
        (0, 0, "embed_dim must be positive"),
        (2, -3, "num_layers must be positive"),
        (2, 2**31 - 1, "num_layers=2147483647 is more than 1024"),  # at once
        (3, 0, "num_heads must be positive"),
        (4, 4, "not a multiple of model.num_kv_heads=4"),
        (5, TINY.vocab_size, "its header asks for"),  # tied: no output projection is expected
        (6, SEQ_LEN + 1, "its header asks for"),
    ],
)
def test_the_header_must_make_sense(untied, field, value, message):
    content = bytearray(untied.read_bytes())
    struct.pack_into("<i", content, 4 * field, value)
    untied.write_bytes(content)
    with pytest.raises(UserError, match=message):
        Llama2cSource(untied)


def test_no_file_and_no_header(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        Llama2cSource(tmp_path / "none")
    (tmp_path / "short").write_bytes(bytes(27))
    with pytest.raises(UserError, match="shorter than a header"):
        Llama2cSource(tmp_path / "short")
