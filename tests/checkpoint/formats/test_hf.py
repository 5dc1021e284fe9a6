import json
import weakref

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from crystal_jax.checkpoint.formats.easylm import write_easylm
from crystal_jax.checkpoint.formats.hf import HfSource, config_json, read_config, write_hf
from crystal_jax.checkpoint.formats.safetensors_io import INDEX, SINGLE
from crystal_jax.checkpoint.tensors import check, expected_shapes, permute, stream, unpermute
from crystal_jax.errors import UserError
from tests.checkpoint.sources import RandomSource
from tests.experiments import TINY


def change(folder, edit):
    tensors = load_file(folder / SINGLE)
    edit(tensors)
    save_file(tensors, folder / SINGLE)


def restate(folder, **fields):
    path = folder / "config.json"
    stated = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))


def test_what_is_written_is_what_was_read(folder, tmp_path):
    write_hf(tmp_path / "copy", HfSource(folder), dtype="float32")
    first, second = load_file(folder / SINGLE), load_file(tmp_path / "copy" / SINGLE)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    assert read_config(tmp_path / "copy") == read_config(folder)


@pytest.mark.parametrize(("dtype", "numpy"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_shards_and_their_index(folder, tmp_path, dtype, numpy):
    source = HfSource(folder)
    write_hf(tmp_path / "copy", source, dtype=dtype, shard_bytes=100_000)
    index = json.loads((tmp_path / "copy" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert index["metadata"]["total_size"] == 2 * 260_032
    assert max((tmp_path / "copy" / file).stat().st_size for file in files) < 110_000
    copy = HfSource(tmp_path / "copy")
    for name, tensor in stream(copy):
        np.testing.assert_array_equal(tensor, source.read(name).astype(numpy))


def test_a_file_is_what_its_package_expects(folder, tmp_path):
    write_hf(tmp_path / "copy", HfSource(folder), dtype="bfloat16")
    file = tmp_path / "copy" / SINGLE
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    with safe_open(file, framework="np") as tensors:
        assert tensors.metadata() == {"format": "pt"}
        assert {name: tuple(tensors.get_slice(name).get_shape()) for name in list(tensors.keys())} == expected_shapes(
            read_config(folder)
        )


@pytest.mark.parametrize("write", [write_hf, write_easylm], ids=["hf", "easylm"])
def test_one_tensor_at_a_time_is_in_memory(tmp_path, write):
    class Watched(RandomSource):
        read_so_far, most = [], 0

        def read(self, name):
            tensor = super().read(name)
            self.read_so_far.append(weakref.ref(tensor))
            self.most = max(self.most, sum(held() is not None for held in self.read_so_far))
            return tensor

    source = Watched(TINY)
    write(tmp_path / "out", source, dtype="float32" if write is write_hf else np.dtype(np.float32))
    assert len(source.read_so_far) >= len(expected_shapes(TINY))
    assert source.most <= 2  # the one that is written stays until the next one is there


def test_configs_of_transformers_4(folder):
    new = read_config(folder)
    restate(folder, rope_parameters=None, rope_theta=10_000.0, dtype=None, torch_dtype="float32", head_dim=None)
    assert read_config(folder) == new
    restate(folder, rope_theta=5e5)
    assert read_config(folder).rope_theta == 5e5


def test_both_generations_of_keys_are_written(folder):
    written = config_json(read_config(folder), "bfloat16")
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 10_000.0
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is true"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_type is 'llama3'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_key_value_heads": 3}, "num_heads=8 is not a multiple of model.num_kv_heads=3"),
    ],
)
def test_other_architectures_are_refused(folder, fields, message):
    restate(folder, **fields)
    with pytest.raises(UserError, match=message):
        read_config(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lacks tensor model.norm.weight$"),
        (
            lambda t: [t.pop(n) for n in list(t) if ".3.mlp" in n],
            r"lacks tensor model.layers.3.mlp.down_proj.weight and 2",
        ),
        (lambda t: t.update(odd=np.zeros(3, np.float32)), "has unknown tensor odd"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(63, np.float32)}),
            r"has shape \(63,\), .* asks for \(64,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, edit, message):
    change(folder, edit)
    source = HfSource(folder)
    with pytest.raises(UserError, match=message):
        check(folder, source.shapes(), source.config)


def test_buffers_of_old_files_are_ignored(folder):
    change(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}))
    assert HfSource(folder).shapes() == expected_shapes(read_config(folder))


def test_a_tensor_in_two_shards(folder, tmp_path):
    write_hf(tmp_path / "copy", HfSource(folder), dtype="float32", shard_bytes=300_000)
    first, second = sorted((tmp_path / "copy").glob("model-*"))[:2]
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(UserError, match=r"tensor model.embed_tokens.weight is in model-00001-.* and in model-00002-"):
        HfSource(tmp_path / "copy")


def test_an_index_that_is_wrong(folder, tmp_path):
    copy = tmp_path / "copy"
    write_hf(copy, HfSource(folder), dtype="float32", shard_bytes=300_000)
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00004.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"places tensor model.norm.weight in model-00001"):
        HfSource(copy)
    (copy / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(UserError, match=r"names model-00002-of-00004.safetensors, which is missing"):
        HfSource(copy)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"weight_map": {"model.norm', r"index\.json is damaged"),
        ("{}", "weight_map is missing"),
        ("[]", "is a list, not an object"),
        ('{"weight_map": []}', "weight_map is a list, not an object"),
        ('{"weight_map": {}}', "weight_map is empty"),
        ('{"weight_map": {"model.norm.weight": 3}}', r"weight_map\.model\.norm\.weight is 3, not a text"),
        ('{"weight_map": {"a": "../model-1.safetensors"}}', "which is no name of a file beside it"),
        ("\0\0", "is damaged"),
        (b"\xff\xfe{}", "is damaged: it is not UTF-8"),
    ],
)
def test_a_damaged_index_is_one_line(folder, tmp_path, content, message):
    copy = tmp_path / "copy"
    write_hf(copy, HfSource(folder), dtype="float32", shard_bytes=300_000)
    (copy / INDEX).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as error:
        HfSource(copy)
    assert "\n" not in str(error.value)


def test_a_whole_file_comes_before_a_stale_index(folder, tmp_path, capsys):
    """As in transformers; old shards lie about where a model was merged into its own folder."""
    copy = tmp_path / "copy"
    write_hf(copy, HfSource(folder), dtype="float32", shard_bytes=300_000)
    tensors = load_file(folder / SINGLE)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, copy / SINGLE)
    source = HfSource(copy)
    np.testing.assert_array_equal(source.read("model.norm.weight"), tensors["model.norm.weight"])
    said = capsys.readouterr().err
    assert f"{SINGLE} is read; {INDEX} and its shards are passed over" in said
    assert said.count("\n") == 1


def test_the_stored_head_of_a_tied_model(folder):
    assert read_config(folder).tie_embeddings
    embedding = load_file(folder / SINGLE)["model.embed_tokens.weight"]
    change(folder, lambda t: t.update({"lm_head.weight": embedding.copy()}))
    source = HfSource(folder)
    check(folder, source.shapes(), source.config)
    other = embedding.copy()
    other[-1, -1] += 1e-3
    for head in (other, embedding[:-1].copy(), embedding.astype(np.float16) + 1):
        change(folder, lambda t, head=head: t.update({"lm_head.weight": head}))
        with pytest.raises(UserError, match=r"tie_word_embeddings, but lm_head\.weight differs from the embedding"):
            HfSource(folder)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "I64", "BOOL"])
def test_a_type_that_is_not_read_is_named(folder, kind):
    """The file's header is rewritten, and its other tensors stay."""
    content = (folder / SINGLE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    width = {"I64": 8}.get(kind, 1)
    header["model.norm.weight"] |= {"dtype": kind, "shape": [64 * 4 // width]}  # as many bytes
    text = json.dumps(header).encode()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(UserError, match=rf"tensor model\.norm\.weight has type {kind}, which is not read"):
        HfSource(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', not a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a finite number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0; it must be above 0"),
        ({"num_hidden_layers": [5]}, "num_hidden_layers is a list, not a whole number"),
        ({"num_hidden_layers": 10**9}, "num_layers=1000000000 is more than 1024"),
        ({"num_hidden_layers": 2.5}, r"num_hidden_layers is 2\.5, not a whole number"),
        ({"vocab_size": True}, "vocab_size is true, not a whole number"),
        ({"vocab_size": 10**30}, "vocab_size is 1000000000000000000000000000000; it must be"),
        ({"vocab_size": -5}, "vocab_size must be positive"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be at least 1"),
        ({"hidden_size": {}}, "hidden_size is an object, not a whole number"),
        ({"rope_parameters": [1]}, "rope_parameters is a list, not an object"),
        ({"rope_parameters": {"rope_type": ["default"]}}, "rope_type is a list; LLaMA-2's is 'default'"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, r"rope_parameters\.rope_theta is '1e4', not a finite number"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor is 0\.5"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', not true or false"),
        ({"dtype": ["float32"]}, "dtype is a list, not a text"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config: the weights are quantised"),
        ({"model_type": ["llama"]}, "model_type is a list; only 'llama'"),
    ],
)
def test_wrong_types_in_a_config_are_one_line(folder, fields, message):
    restate(folder, **fields)
    with pytest.raises(UserError, match=message) as error:
        read_config(folder)
    assert "\n" not in str(error.value)


def test_null_is_no_number(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": None}))
    with pytest.raises(UserError, match=r"config\.json: rms_norm_eps is null"):
        HfSource(folder)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"config\.json is a list, not an object"):
        HfSource(folder)


def test_damaged_files(folder, tmp_path):
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="no readable safetensors file"):
        HfSource(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(UserError, match=f"neither {SINGLE} nor {INDEX}"):
        HfSource(folder)
    with pytest.raises(UserError, match=r"no Hugging Face model: it has no config.json"):
        HfSource(tmp_path)


def test_the_two_orders_of_rows_are_each_others_inverse():
    rows = np.arange(24 * 3).reshape(24, 3)
    np.testing.assert_array_equal(permute(unpermute(rows, 4), 4), rows)
    # A head of six rows: Meta turns (0, 1), (2, 3), (4, 5), which Hugging Face has as (0, 3), (1, 4), (2, 5).
    assert unpermute(np.arange(6), 1).tolist() == [0, 3, 1, 4, 2, 5]
