"""A base in few bits on disk."""

import json
import math

import jax
import numpy as np
import pytest

from crystal_jax.checkpoint.formats.hf import HfSource
from crystal_jax.checkpoint.formats.quantized import write_quantized
from crystal_jax.checkpoint.formats.safetensors_io import INDEX, Shards
from crystal_jax.checkpoint.models import initial_parameters, load_trained
from crystal_jax.checkpoint.run import convert
from crystal_jax.cli import main
from crystal_jax.config import MeshConfig, QuantizationConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.sample.run import sample
from crystal_jax.sharding import make_mesh
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer
from crystal_jax.train.run import train
from tests.experiments import training_config

VOCABULARY = AtomCoordinateTokenizer().vocab_size


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    convert("crystal_jax", "hf", input=trained, output=folder, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def packed(exported, tmp_path_factory):
    """By kind, the folder that the command writes."""
    folders = {}
    for kind in ("int8", "int4", "nf4"):
        folders[kind] = tmp_path_factory.mktemp("packed") / kind
        arguments = [f"--input={exported}", f"--output={folders[kind]}", f"--quantize={kind}", "--block_size=8"]
        assert main(["convert", "--from=hf", "--to=quantized", "--dtype=float32", *arguments]) == 0
    return folders


def experiment_on(base, dataset, kind, **changes):
    changes = {"lora": {"rank": 2}, "quantize": {"kind": kind, "block_size": 8}} | changes
    return training_config(str(dataset), base=str(base), **changes)


@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
@pytest.mark.parametrize(("axes", "rows"), [((1, 2, 2), VOCABULARY + 3), ((4, 1, 1), VOCABULARY)])
def test_a_run_gets_the_codes_that_it_would_make_itself(exported, packed, dataset, kind, axes, rows):
    mesh = make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), axes, strict=True))))
    (_, _, theirs), (_, _, ours) = (
        initial_parameters(from_config_dict(experiment_on(base, dataset, kind), vocab_size=rows), mesh)
        for base in (exported, packed[kind])
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [leaf.sharding for leaf in jax.tree.leaves(ours)] == [leaf.sharding for leaf in jax.tree.leaves(theirs)]
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} >= {np.dtype("int8" if kind == "int8" else "uint8")}


def test_a_weight_takes_as_many_bits_as_its_kind_says(exported, packed):
    whole = Shards(exported).shapes()
    weights = sum(math.prod(shape) for name, shape in whole.items() if "proj" in name)
    for kind, bits in (("int8", 8), ("int4", 4), ("nf4", 4)):
        shards = Shards(packed[kind])
        codes = sum(shards.read(name).nbytes for name in shards.shapes() if name.endswith(".codes"))
        assert codes * 8 == weights * bits


def test_it_is_trained_on_sampled_from_and_merged(packed, dataset, tmp_path):
    config = experiment_on(packed["nf4"], dataset, "nf4", mesh={"data": -1, "fsdp": 1})
    train(config | {"train": {**config["train"], "num_steps": 1}}, workdir=tmp_path / "run")
    sample(tmp_path / "run", output=tmp_path / "samples", num_samples=1, batch_size=4)
    convert("crystal_jax", "hf", input=tmp_path / "run", output=tmp_path / "merged", dtype="float32")
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    assert load_trained(tmp_path / "merged", mesh).experiment.quantize.kind == "none"


def test_several_files_and_a_larger_vocabulary(exported, packed, dataset, tmp_path):
    kept = QuantizationConfig(kind="int8", block_size=8)
    write_quantized(tmp_path / "cut", HfSource(exported), kept, dtype="float32", shard_bytes=20_000)
    assert (tmp_path / "cut" / INDEX).is_file()
    whole, cut = Shards(packed["int8"]), Shards(tmp_path / "cut")
    assert whole.shapes() == cut.shapes()
    for name in whole.shapes():
        np.testing.assert_array_equal(whole.read(name), cut.read(name))
    config = experiment_on(tmp_path / "cut", dataset, "int8")
    grown = from_config_dict(config | {"model": {**config["model"], "vocab_size": VOCABULARY + 3}}, vocab_size=0)
    _, _, frozen = initial_parameters(grown, make_mesh(MeshConfig(data=4, fsdp=1, tensor=1)))
    embedding = np.asarray(frozen["embedding"].get_value())
    assert len(embedding) == VOCABULARY + 3
    np.testing.assert_allclose(embedding[-1], embedding[:VOCABULARY].mean(axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize": {"kind": "nf4", "block_size": 8}}, r"kept in int4.*--config.quantize.kind=int4"),
        ({"quantize": {"kind": "int4", "block_size": 32}}, r"its blocks are 8 weights"),
        ({"quantize": {"kind": "none"}}, r"kept in int4"),
        ({"lora": {"rank": 0}, "quantize": {"kind": "none"}}, r"kept in int4"),
        ({"model": {"rope_theta": 7.0}}, r"rope_theta=500.0 there, 7.0 here"),
    ],
)
def test_a_base_of_other_bits_is_refused(packed, dataset, changes, message):
    experiment = from_config_dict(experiment_on(packed["int4"], dataset, "int4", **changes), vocab_size=VOCABULARY)
    with pytest.raises(UserError, match=message):
        initial_parameters(experiment, make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))


def test_damage_is_named(exported, dataset, tmp_path):
    write_quantized(tmp_path, HfSource(exported), QuantizationConfig(kind="int8"), dtype="float32")
    experiment = from_config_dict(experiment_on(tmp_path, dataset, "int8"), vocab_size=VOCABULARY)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    stated = json.loads((tmp_path / "quantized.json").read_text())
    stated["model"]["num_layers"] += 1
    (tmp_path / "quantized.json").write_text(json.dumps(stated))
    with pytest.raises(UserError, match=r"lacks tensor model.layers.\d+.input_layernorm.weight and"):
        initial_parameters(experiment, mesh)
    (tmp_path / "quantized.json").write_text("{")
    with pytest.raises(UserError, match=r"quantized.json is damaged"):
        initial_parameters(experiment, mesh)
