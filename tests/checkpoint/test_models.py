"""Models from workdirs, exported folders and the package."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from crystal_jax.checkpoint.models import describe, in_model_dtype, initial_parameters, load_for_inference, load_trained
from crystal_jax.checkpoint.run import convert
from crystal_jax.config import MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.model.architectures import make_model
from crystal_jax.sample.run import sample
from crystal_jax.sharding import make_mesh
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer
from crystal_jax.train.run import train
from tests.experiments import NO_LORA, logits, training_config

VOCABULARY = AtomCoordinateTokenizer().vocab_size


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    convert("crystal_jax", "hf", input=trained, output=folder, dtype="float32")
    return folder


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_exported_folder_is_the_workdirs_model(trained, exported, mesh):
    ours, theirs = load_trained(exported, mesh), load_trained(trained, mesh)
    assert_equal(ours.params, theirs.params)
    assert ours.experiment == describe(exported)
    assert (ours.experiment.model, ours.experiment.text, ours.step) == (
        theirs.experiment.model,
        theirs.experiment.text,
        theirs.step,
    )
    assert str(trained.parent) not in (exported / "crystal_jax.json").read_text()
    assert (ours.name, theirs.name) == ("model", f"{trained.name}-step6")


def test_for_inference_matrices_are_kept_in_the_type_that_the_model_computes_in(exported, mesh):
    """Rounded once instead of in every use: the same numbers, to the bit."""
    graph, params, experiment, *_ = load_trained(exported, mesh)
    half = dataclasses.replace(experiment.model, dtype="bfloat16")
    narrow = in_model_dtype(params, half)
    types = {jax.tree_util.keystr(path): str(x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(narrow)}
    assert {name for name, kind in types.items() if kind == "float32"} == {name for name in types if "norm" in name}
    execution = dataclasses.replace(experiment.execution, scan_layers=True, remat=False)
    graph = nnx.split(nnx.eval_shape(lambda: make_model(half, NO_LORA, execution, rngs=nnx.Rngs(0))))[0]
    tokens = jnp.arange(24).reshape(2, 12) % half.vocab_size
    wide, rounded = (logits(nnx.merge(graph, state), tokens) for state in (params, narrow))
    np.testing.assert_array_equal(wide, rounded)


def test_an_exported_folder_of_a_16_bit_model_is_read_in_16_bits_for_inference(exported, mesh, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "half")
    facts = json.loads((folder / "crystal_jax.json").read_text())
    facts["experiment"]["model"]["dtype"] = "bfloat16"
    (folder / "crystal_jax.json").write_text(json.dumps(facts))
    read = load_for_inference(folder, mesh)
    assert_equal(read.params, in_model_dtype(load_trained(folder, mesh).params, read.experiment.model))
    assert read.params["blocks"]["q"]["kernel"].get_value().dtype == jnp.bfloat16


def test_an_exported_folder_states_the_tokens_that_begin_and_end(exported):
    stated, tokenizer = json.loads((exported / "config.json").read_text()), AtomCoordinateTokenizer()
    assert (stated["bos_token_id"], stated["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_both_write_the_same_crystals(trained, exported, tmp_path):
    paths = [
        sample(checkpoint, output=tmp_path / str(i), num_samples=3, batch_size=4)
        for i, checkpoint in enumerate((trained, exported))
    ]
    texts = [[json.loads(line)["text"] for line in (p.parent / "samples.jsonl").open()] for p in paths]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["trained", "exported"])
def test_all_of_a_base_is_trained_on(kind, request, dataset, mesh, tmp_path):
    base = request.getfixturevalue(kind)
    config = training_config(str(dataset), base=str(base), train={"num_steps": 1}, mesh={"data": -1, "fsdp": 1})
    _, params, _ = initial_parameters(from_config_dict(config, vocab_size=VOCABULARY), mesh)
    assert_equal(params, load_trained(base, mesh).params)
    train(config, workdir=tmp_path / "run")
    after = load_trained(tmp_path / "run", mesh).params
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), params, after)
    assert not any(jax.tree.leaves(same))


def test_an_adapters_merged_export_forgets_its_base(trained, dataset, mesh, tmp_path):
    config = training_config(str(dataset), base=str(trained), lora={"rank": 2}, mesh={"data": -1, "fsdp": 1})
    train(config | {"train": {**config["train"], "num_steps": 1}}, workdir=tmp_path / "run")
    convert("crystal_jax", "hf", input=tmp_path / "run", output=tmp_path / "merged", dtype="float32")
    experiment = describe(tmp_path / "merged")
    assert (experiment.lora.rank, experiment.base) == (0, "")
    sample(tmp_path / "merged", output=tmp_path / "samples", num_samples=1, batch_size=4)


def test_what_cannot_be_read_is_said(exported, mesh, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint nowhere: .* released models are: crystal-tiny"):
        load_trained("nowhere", mesh)
    with pytest.raises(UserError, match="has no steps to choose from"):
        load_trained(exported, mesh, step=3)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((exported / "config.json").read_text())
    with pytest.raises(UserError, match=r"has no crystal_jax.json.*convert --from=hf --to=crystal_jax"):
        load_trained(bare, mesh)


def test_a_base_must_speak_the_same_language(exported, dataset, mesh):
    config = training_config(str(dataset), base=str(exported), lora={"rank": 2}, text={"version": "paper"})
    experiment = from_config_dict(config, vocab_size=VOCABULARY)
    with pytest.raises(UserError, match="another text format or tokenizer"):
        initial_parameters(experiment, mesh)
    other = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, rope_theta=7.0))
    with pytest.raises(UserError, match=r"rope_theta=500.0 there, 7.0 here"):
        initial_parameters(dataclasses.replace(other, text=describe(exported).text), mesh)
