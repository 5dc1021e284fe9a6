import dataclasses
import tempfile
from pathlib import Path

import flax.serialization
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystal_jax.checkpoint.formats import easylm
from crystal_jax.checkpoint.formats.easylm import EasyLmSource, write_easylm
from crystal_jax.checkpoint.formats.hf import DTYPES, HfSource
from crystal_jax.checkpoint.tensors import check
from crystal_jax.config import LlamaConfig
from crystal_jax.errors import UserError
from tests.checkpoint.sources import RandomSource, assert_same, records
from tests.experiments import TINY

SMALL = dataclasses.replace(TINY, vocab_size=5, embed_dim=4, mlp_dim=3, num_layers=1, num_heads=2, head_dim=2)
ONES, HALF = np.ones(4, np.float32), np.ones(4, np.float16)
CHUNKED = {"__msgpack_chunked_array__": True, "shape": {"0": 4, "1": 2}}
TIED = dataclasses.replace(SMALL, tie_embeddings=True)


@pytest.fixture
def stories(shared):
    return shared / "weights" / "stories260K"


class Cast:
    """A source in another type."""

    def __init__(self, source, dtype):
        self.path, self.config, self.shapes = source.path, source.config, source.shapes
        self.read = lambda name: source.read(name).astype(dtype)


@pytest.mark.parametrize(("file", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_files_of_easylm(stories, tmp_path, file, dtype):
    original, hf = stories / f"stories260K.{file}.easylm", HfSource(stories / "stories260K-hf")
    assert_same(EasyLmSource(original, hf.config), Cast(hf, DTYPES[dtype]))
    write_easylm(tmp_path / "again", hf, dtype=DTYPES[dtype])
    assert (tmp_path / "again").read_bytes() == original.read_bytes()
    write_easylm(tmp_path / "uncast", EasyLmSource(original, hf.config))
    assert (tmp_path / "uncast").read_bytes() == original.read_bytes()


@st.composite
def configs(draw):
    size, kv = st.integers(1, 5), draw(st.integers(1, 3))
    return LlamaConfig(
        vocab_size=draw(size),
        embed_dim=draw(size),
        mlp_dim=draw(size),
        num_layers=draw(st.integers(1, 12)),  # "10" sorts before "2"
        num_heads=kv * draw(st.integers(1, 2)),
        num_kv_heads=kv,
        head_dim=2 * draw(st.integers(1, 3)),
        norm_eps=1e-5,
        rope_theta=1e4,
        tie_embeddings=draw(st.booleans()),
        dtype="float32",
    )


@given(cfg=configs(), dtype=st.sampled_from(sorted(DTYPES)), chunk=st.sampled_from([16, 2**30]))
@settings(max_examples=30)
def test_what_is_written_is_read(cfg, dtype, chunk):
    source = RandomSource(cfg, DTYPES[dtype])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(easylm, "CHUNK_BYTES", chunk)
        path = Path(folder) / "new" / "streaming_params"
        write_easylm(path, source)
        assert_same(EasyLmSource(path, cfg), source)
        assert [file.name for file in path.parent.iterdir()] == ["streaming_params"]


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_large_arrays_are_cut_as_flax_cuts_them(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(easylm, "CHUNK_BYTES", 30)  # no multiple of a float32, nor of a row
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 30)
    path = tmp_path / "chunked"
    write_easylm(path, RandomSource(SMALL, DTYPES[dtype]))
    written = path.read_bytes()
    arrays = records(path)
    assert arrays["transformer/wte/embedding"].shape == (5, 4)
    expected = [msgpack.packb((key.split("/"), flax.serialization.to_bytes(a))) for key, a in arrays.items()]
    assert written == b"".join(expected)
    assert written.count(b"chunked") == sum(a.nbytes > 30 for a in arrays.values()) > 0


def test_train_states_are_read_without_their_optimizer(tmp_path):
    write_easylm(tmp_path / "params", RandomSource(SMALL))
    with (tmp_path / "state").open("wb") as file:
        file.write(msgpack.packb((["step"], msgpack.packb(0))))
        for prefix in ("params/params", "opt_state/1/0/mu/params", "opt_state/1/0/nu/params"):
            for key, array in records(tmp_path / "params").items():
                sign = 1 if prefix == "params/params" else -1
                file.write(msgpack.packb((f"{prefix}/{key}".split("/"), flax.serialization.to_bytes(sign * array))))
        file.write(msgpack.packb((["opt_state", "1", "2", "count"], flax.serialization.to_bytes(np.int32(7)))))
    assert_same(EasyLmSource(tmp_path / "state", SMALL), RandomSource(SMALL))


def pack(key, value):
    return msgpack.packb((key.split("/"), flax.serialization.msgpack_serialize(value, in_place=True)))


def rewritten(path, change):
    """The path of a SMALL model's file whose records `change` has altered."""
    write_easylm(path, RandomSource(SMALL))
    arrays = records(path)
    change(arrays)
    path.write_bytes(b"".join(pack(*record) for record in arrays.items()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("transformer/h/0/attention/wo/kernel"), r"lacks tensor model\.layers\.0\.self_attn\.o_proj"),
        (lambda a: a.pop("lm_head/kernel"), r"lacks tensor lm_head\.weight"),
        (lambda a: a.update({"transformer/h/0/bias": np.ones(3)[:0]}), "float64; weights are float32"),
        (lambda a: a.update({"transformer/h/0/bias": np.float32([1])}), "unknown tensor transformer/h/0/bias"),
        (
            lambda a: a.update({"transformer/h/1/ffn_norm/kernel": np.float32([1])}),
            "unknown tensor transformer/h/1/ffn",
        ),
        (lambda a: a.update({"lm_head/kernel": a["lm_head/kernel"].T}), r"lm_head\.weight has shape \(4, 5\)"),
        (lambda a: a.update({"lm_head/kernel": 3}), "damaged at byte"),
        (lambda a: a.update({"lm_head/kernel": "weights"}), "damaged at byte"),
        (lambda a: a.update({"lm_head/kernel": {"a": np.float32([1])}}), "not an array"),
        (lambda a: a.update({"lm_head/kernel": CHUNKED | {"chunks": {}}}), "damaged at byte"),
        (lambda a: a.update({"lm_head/kernel": CHUNKED | {"chunks": {"1": ONES}}}), "chunk 0 is missing"),
        (lambda a: a.update({"lm_head/kernel": CHUNKED | {"chunks": {"0": ONES}}}), "do not add up"),
        (lambda a: a.update({"lm_head/kernel": CHUNKED | {"chunks": {"0": ONES, "1": HALF}}}), "different types"),
        (lambda a: a.update({"lm_head/kernel": np.float32(3)}), "extension of type 3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    path = rewritten(tmp_path / "changed", change)
    with pytest.raises(UserError, match=message):
        check(path, EasyLmSource(path, SMALL).shapes(), SMALL)


def test_a_tensor_that_comes_twice(tmp_path):
    path = rewritten(tmp_path / "twice", lambda arrays: None)
    path.write_bytes(path.read_bytes() + pack("transformer/ln_f/kernel", np.float32([0] * 4)))
    with pytest.raises(UserError, match="transformer/ln_f/kernel twice"):
        EasyLmSource(path, SMALL)


def test_a_record_longer_than_its_tensor(tmp_path):
    blob = flax.serialization.to_bytes(ONES) + b"more"
    (tmp_path / "long").write_bytes(msgpack.packb((["transformer", "ln_f", "kernel"], blob)))
    with pytest.raises(UserError, match="transformer/ln_f/kernel is shorter than its record"):
        EasyLmSource(tmp_path / "long", SMALL)


def test_a_tied_model_has_both_and_they_are_equal(tmp_path):
    write_easylm(tmp_path / "tied", RandomSource(TIED))
    arrays = records(tmp_path / "tied")
    np.testing.assert_array_equal(arrays["lm_head/kernel"], arrays["transformer/wte/embedding"].T)
    path = rewritten(tmp_path / "untied", lambda arrays: None)
    with pytest.raises(UserError, match="differs from the embedding; the model is not tied"):
        EasyLmSource(path, TIED).read("model.embed_tokens.weight")
    path = rewritten(tmp_path / "short", lambda arrays: arrays.pop("lm_head/kernel"))
    with pytest.raises(UserError, match="lacks tensor lm_head/kernel"):
        EasyLmSource(path, TIED)


@pytest.mark.parametrize("content", [b"", b"\0", b"{}", b"PK\3\4" * 100, b"\x92", b"\x92\x91\xa4step", b"\x92\1\2"])
def test_other_files(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(UserError, match="is empty" if not content else "is no EasyLM checkpoint"):
        EasyLmSource(tmp_path / "other", SMALL)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: No such file"):
        EasyLmSource(tmp_path / "none", SMALL)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(easylm, "CHUNK_BYTES", 50)
        write_easylm(folder / "small", RandomSource(SMALL))
    return (folder / "small").read_bytes(), folder


def test_a_truncated_file_never_passes(small):
    content, folder = small
    path = folder / "cut"
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(UserError):
            check(path, EasyLmSource(path, SMALL).shapes(), SMALL)


@given(data=st.data())
@settings(max_examples=300)
def test_a_damaged_byte_is_at_most_a_user_error(small, data):
    content, folder = small
    at = data.draw(st.integers(0, len(content) - 1))
    path = folder / "damaged"
    path.write_bytes(content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :])
    try:
        source = EasyLmSource(path, SMALL)
        check(path, source.shapes(), SMALL)
    except UserError:
        return
    for name in source.shapes():
        source.read(name)


def test_a_failed_write_leaves_nothing(tmp_path):
    class Broken(RandomSource):
        def read(self, name):
            if name == "model.norm.weight":
                raise UserError("unreadable")
            return super().read(name)

    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(UserError, match="unreadable"):
        write_easylm(tmp_path / "out", Broken(SMALL))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("out", b"old")]
    with pytest.raises(UserError, match="cannot write"):
        write_easylm(tmp_path / "out" / "below", RandomSource(SMALL))
