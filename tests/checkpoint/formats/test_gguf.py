import sys

import numpy as np
import pytest

from crystal_jax.checkpoint.formats.gguf import GgufSource
from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.tensors import check, expected_shapes
from crystal_jax.errors import UserError
from tests.checkpoint.formats.gguf_files import WIDE, tensors_of, write_gguf
from tests.checkpoint.sources import RandomSource, assert_same

gguf = pytest.importorskip("gguf")


@pytest.fixture
def stories(shared, tmp_path):
    """The real model in GGUF, tied as it is."""
    folder = shared / "weights" / "stories260K"
    hf = HfSource(folder / "stories260K-hf")
    tensors = tensors_of(folder / "stories260K.fp32.easylm")
    del tensors["output.weight"]
    return write_gguf(tmp_path / "stories.gguf", hf.config, tensors, vocab_size=512), hf


def test_a_real_model(stories):
    path, hf = stories
    source = GgufSource(path)
    assert source.config == hf.config
    assert_same(source, hf)


def test_transformers_reads_the_same(stories):
    """Its order of the rows of q and k is the one that GGUF files of llama.cpp are read with."""
    transformers = pytest.importorskip("transformers")
    path, _ = stories
    theirs = transformers.LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name).state_dict()
    source = GgufSource(path)
    for name in expected_shapes(source.config):
        np.testing.assert_array_equal(source.read(name), theirs[name].numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("kind", "error"),
    [("F32", 0), ("F16", 3e-3), ("BF16", 2e-2), ("Q8_0", 3e-2), ("Q5_1", 0.2), ("Q4_1", 0.3), ("Q4_0", 0.6)],
)
def test_types(tmp_path, wide, kind, error):
    source, exact = GgufSource(write_gguf(tmp_path / "model.gguf", WIDE, wide, kind)), RandomSource(WIDE)
    assert source.config.dtype == ("float32" if kind == "F32" else "bfloat16")
    assert not source.config.tie_embeddings
    check(source.path, source.shapes(), source.config)
    for name in expected_shapes(WIDE):
        tensor = source.read(name)
        assert tensor.dtype == np.float32
        np.testing.assert_allclose(tensor, exact.read(name), atol=error, rtol=0)


def test_config_without_optional_metadata(tmp_path, wide):
    left_out = {"attention__head_count_kv": None, "rope__freq_base": None, "rope__dimension_count": None}
    cfg = GgufSource(write_gguf(tmp_path / "model.gguf", WIDE, wide, **left_out)).config
    assert (cfg.num_kv_heads, cfg.rope_theta, cfg.head_dim) == (cfg.num_heads, 10_000.0, 16)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "qwen2"}, "architecture is 'qwen2'"),
        ({"block_count": None}, r"llama\.block_count is missing"),
        ({"attention__head_count": 0}, "model.gguf: "),
        ({"attention__head_count_kv": 4}, "not a multiple"),
        ({"rope__dimension_count": 8}, r"llama\.rope\.dimension_count is 8; only 16"),
        ({"rope__scaling__type": "yarn"}, "rope.scaling.type is 'yarn'"),
        ({"expert_count": 8}, "expert_count is 8"),
        ({"block_count": 2**32 - 1}, "block_count is 4294967295, but there are 21 tensors"),
        ({"block_count": "two"}, r"llama\.block_count is 'two', not a whole number"),
        ({"rope__scaling__attn_factor": 2.0}, r"llama\.rope\.scaling\.attn_factor is 2\.0; only 1\.0"),
        ({"rope__dimension_count_swa": 16}, r"llama\.rope\.dimension_count_swa is unknown; only LLaMA's rotary"),
        ({"rope__freq_base": float("inf")}, r"llama\.rope\.freq_base is inf, not a finite number"),
        ({"attention__clamp_kqv": 8.0}, r"llama\.attention\.clamp_kqv is 8\.0; only 0\.0"),
    ],
)
def test_other_architectures(tmp_path, wide, metadata, message):
    path = write_gguf(tmp_path / "model.gguf", WIDE, wide, **metadata)
    with pytest.raises(UserError, match=message):
        GgufSource(path)


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_of_a_split_file_says_so(tmp_path, wide, part):
    def parts(writer):
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)

    path = write_gguf(tmp_path / "model.gguf", WIDE, wide, vocabulary=parts)
    with pytest.raises(UserError, match=rf"is part {part + 1} of 2: merge with llama-gguf-split --merge"):
        GgufSource(path)


def test_a_list_where_a_number_is_meant(tmp_path, wide):
    """llama.cpp takes a number for each layer; where they are equal, they are one number."""

    def heads(count, kv):
        def add(writer):
            writer.add_array("llama.attention.head_count", count)
            writer.add_array("llama.attention.head_count_kv", kv)

        return add

    without = {"attention__head_count": None, "attention__head_count_kv": None}
    same = heads([WIDE.num_heads] * 2, [WIDE.num_kv_heads] * 2)
    path = write_gguf(tmp_path / "same.gguf", WIDE, wide, vocabulary=same, **without)
    assert GgufSource(path).config.num_heads == WIDE.num_heads
    path = write_gguf(tmp_path / "other.gguf", WIDE, wide, vocabulary=heads([WIDE.num_heads, 2], [1, 1]), **without)
    with pytest.raises(UserError, match=r"llama\.attention\.head_count is a list, not a whole number"):
        GgufSource(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_embd.weight": None}, r"lacks tensor token_embd\.weight"),
        ({"blk.1.ffn_up.weight": None}, r"lacks tensor model\.layers\.1\.mlp\.up_proj"),
        ({"rope_freqs.weight": np.ones(8, np.float32)}, r"unknown tensor rope_freqs\.weight"),
        ({"blk.0.attn_q.bias": np.ones(96, np.float32)}, r"unknown tensor blk\.0\.attn_q\.bias"),
        ({"blk.2.ffn_norm.weight": np.ones(96, np.float32)}, r"unknown tensor blk\.2\.ffn_norm\.weight"),
        ({"blk.0.attn_k.weight": np.ones((96, 32), np.float32)}, r"k_proj\.weight has shape \(96, 32\)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, wide, change, message):
    tensors = {name: array for name, array in (wide | change).items() if array is not None}
    path = write_gguf(tmp_path / "model.gguf", WIDE, tensors)

    def shapes():
        source = GgufSource(path)
        check(path, source.shapes(), source.config)

    with pytest.raises(UserError, match=message):
        shapes()


def test_a_type_without_dequantisation(tmp_path, wide):
    writer_type = gguf.GGMLQuantizationType.I8
    path = write_gguf(tmp_path / "model.gguf", WIDE, wide, "F32")
    source = GgufSource(path)
    name = "output.weight"
    source._tensors[name] = source._tensors[name]._replace(tensor_type=writer_type)
    with pytest.raises(UserError, match=r"output\.weight has type I8"):
        source.read("lm_head.weight")


def test_a_truncated_file(tmp_path, wide):
    path = write_gguf(tmp_path / "model.gguf", WIDE, wide)
    content = path.read_bytes()
    for end in [*range(0, 600, 7), len(content) // 2, len(content) - 200]:
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="is no GGUF file, or damaged"):
            GgufSource(path)


def test_no_file_big_endian_and_no_package(tmp_path, wide, monkeypatch):
    with pytest.raises(UserError, match="cannot read"):
        GgufSource(tmp_path / "none")
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="big-endian"):
        GgufSource(tmp_path / "big.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install \"crystal-jax\[gguf\]\""):
        GgufSource(tmp_path / "big.gguf")
