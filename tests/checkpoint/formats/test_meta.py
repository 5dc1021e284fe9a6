import dataclasses
import json
import os
import sys

import numpy as np
import pytest

from crystal_jax.checkpoint.formats.easylm import write_easylm
from crystal_jax.checkpoint.formats.hf import DTYPES, HfSource
from crystal_jax.checkpoint.formats.meta import MetaSource
from crystal_jax.checkpoint.tensors import check
from crystal_jax.errors import UserError
from tests.checkpoint.sources import RandomSource, assert_same, metas_tensors
from tests.experiments import TINY

torch = pytest.importorskip("torch")

AXES = {"tok_embeddings": 1, "wo": 1, "w2": 1, "attention_norm": None, "ffn_norm": None, "norm": None}
EVEN = dataclasses.replace(TINY, vocab_size=98)  # for two shards
SHORT = dataclasses.replace(EVEN, num_layers=1)


def write_shards(folder, easylm, count):
    """A checkpoint as Meta's training writes it, out of an EasyLM file."""
    shards = [{"rope.freqs": torch.ones(4)} for _ in range(count)]
    for name, array in metas_tensors(easylm).items():
        axis = AXES.get(name.split(".")[-2], 0)
        half = array.dtype == DTYPES["bfloat16"]
        tensor = torch.from_numpy(np.array(array.astype(np.float32))).to(torch.bfloat16 if half else torch.float32)
        parts = [tensor] * count if axis is None else tensor.chunk(count, axis)
        for shard, part in zip(shards, parts, strict=True):
            shard[name] = part.clone()
    for i, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{i:02}.pth")


def write_params(folder, cfg, **changes):
    params = {"dim": cfg.embed_dim, "n_layers": cfg.num_layers, "n_heads": cfg.num_heads, "multiple_of": 256}
    params |= {"n_kv_heads": cfg.num_kv_heads, "norm_eps": cfg.norm_eps, "vocab_size": -1} | changes
    (folder / "params.json").write_text(json.dumps({k: v for k, v in params.items() if v is not None}))


def write(folder, cfg=SHORT, dtype="float32", count=2, **changes):
    write_easylm(folder / "easylm", RandomSource(cfg, DTYPES[dtype]))
    write_shards(folder, folder / "easylm", count)
    write_params(folder, cfg, **changes)
    return folder


def rewrite(file, change):
    shard = torch.load(file, weights_only=True)
    change(shard)
    torch.save(shard, file)


@pytest.mark.parametrize("count", [1, 2])
def test_a_real_model(shared, tmp_path, count):
    stories = shared / "weights" / "stories260K"
    hf = HfSource(stories / "stories260K-hf")
    write_shards(tmp_path, stories / "stories260K.fp32.easylm", count)
    write_params(tmp_path, hf.config)
    source = MetaSource(tmp_path)
    assert source.config == dataclasses.replace(hf.config, tie_embeddings=False)
    assert_same(source, hf)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_are_joined(tmp_path, dtype):
    cfg = dataclasses.replace(EVEN, num_layers=11, dtype=dtype)
    source = MetaSource(write(tmp_path, cfg, dtype, rope_theta=cfg.rope_theta, vocab_size=98))
    assert source.config == cfg
    assert_same(source, RandomSource(cfg, DTYPES[dtype]))


def test_without_grouped_queries_and_rope_theta(tmp_path):
    cfg = dataclasses.replace(SHORT, num_kv_heads=SHORT.num_heads, rope_theta=10_000.0)
    source = MetaSource(write(tmp_path, cfg, n_kv_heads=None))
    assert source.config == cfg
    assert_same(source, RandomSource(cfg))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"norm\.weight is None in consolidated\.00\.pth, and \(48,\) in"),
        (lambda s: s.update(extra=torch.ones(2)), r"extra is \(2,\) in consolidated\.00\.pth, and None in"),
        (lambda s: s.update({"norm.weight": torch.ones(47)}), r"norm\.weight is \(47,\) in consolidated\.00\.pth, and"),
    ],
)
def test_unequal_shards(tmp_path, change, message):
    rewrite(write(tmp_path) / "consolidated.00.pth", change)
    with pytest.raises(UserError, match=message):
        MetaSource(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("tok_embeddings.weight"), r"lacks tensor tok_embeddings\.weight"),
        (lambda s: s.pop("layers.0.attention.wk.weight"), r"lacks tensor model\.layers\.0\.self_attn\.k_proj"),
        (lambda s: s.update(extra=torch.ones(2)), "has unknown tensor extra"),
        (lambda s: s.update({"layers.0.attention.wo.weight": torch.ones(2, 2)}), r"o_proj\.weight has shape \(2, 2\)"),
        (lambda s: s.update({"norm.weight": torch.ones(48, dtype=torch.int8)}), r"norm\.weight has type torch\.int8"),
        (lambda s: s.update(step=3), "no dictionary of tensors"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    rewrite(write(tmp_path, count=1) / "consolidated.00.pth", change)

    def read():
        source = MetaSource(tmp_path)
        check(tmp_path, source.shapes(), source.config)
        source.read("model.norm.weight")

    with pytest.raises(UserError, match=message):
        read()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("consolidated.00.pth", r"lacks consolidated\.00\.pth"),
        ("consolidated.01.pth", "has 24 columns in 1 consolidated.* says 48; a shard is missing"),
        ("params.json", "has no params.json"),
    ],
)
def test_a_missing_file(tmp_path, lost, message):
    (write(tmp_path) / lost).unlink()
    with pytest.raises(UserError, match=message):
        MetaSource(tmp_path)


def test_no_shards(tmp_path):
    write_params(tmp_path, SHORT)
    with pytest.raises(UserError, match=r"has no consolidated\.00\.pth"):
        MetaSource(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": None}, "params.json: dim is missing"),
        ({"n_heads": 0}, "params.json: "),
        ({"n_layers": "three"}, "params.json: "),
        ({"n_kv_heads": 4}, "not a multiple"),
        ({"use_scaled_rope": True}, "use_scaled_rope"),
    ],
)
def test_impossible_params(tmp_path, changes, message):
    write(tmp_path, count=1, **changes)
    with pytest.raises(UserError, match=message):
        MetaSource(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "3"])
def test_damaged_params(tmp_path, content):
    (tmp_path / "params.json").write_text(content)
    with pytest.raises(UserError, match=r"params\.json is (damaged|a list, not an object|3, not an object)"):
        MetaSource(tmp_path)


class MakesFolder:
    """Pickles to a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_malicious_pickle_is_refused(tmp_path):
    write_params(tmp_path, SHORT)
    torch.save({"tok_embeddings.weight": MakesFolder(str(tmp_path / "harm"))}, tmp_path / "consolidated.00.pth")
    with pytest.raises(UserError, match="is refused: its pickle holds more than tensors"):
        MetaSource(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_shard(tmp_path, share):
    file = write(tmp_path) / "consolidated.01.pth"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"consolidated\.01\.pth is "):
        MetaSource(tmp_path)


def test_without_torch(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch"):
        MetaSource(tmp_path)
