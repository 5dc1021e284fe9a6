import json
import shutil

import jax
import pytest

from crystal_jax.checkpoint.models import load_trained
from crystal_jax.checkpoint.workdir import read_experiment
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.sharding import make_mesh


@pytest.fixture
def workdir(adapted, tmp_path):
    """A copy of a workdir with one checkpoint, to be damaged."""
    shutil.copytree(adapted, tmp_path / "workdir")
    return tmp_path / "workdir"


def load(workdir):
    return load_trained(workdir, make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"config\.json is damaged"),
        ("[]", r"config\.json is a list, not an object"),
        ("{}", "experiment is missing"),
        ('{"experiment": []}', "experiment is a list, not an object"),
        ('{"experiment": {"model": null}}', "config.model: it is None, not a section"),
        ("\0" * 100, r"config\.json is damaged"),
    ],
)
def test_a_damaged_configuration_is_one_line(workdir, content, message):
    (workdir / "config.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_experiment(workdir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "vocab_size", "512", "config.model: model.vocab_size is '512', not a whole number"),
        ("model", "num_layers", 10**9, "num_layers=1000000000 is more than 1024"),
        ("model", "norm_eps", None, "model.norm_eps is None, not a finite number"),
        ("model", "norm_eps", float("nan"), "model.norm_eps is nan, not a finite number"),
        ("model", "rope_theta", float("inf"), "model.rope_theta is inf, not a finite number"),
        ("lora", "targets", ["q", 3], r"lora.targets is \('q', 3\), not a list whose members are each a text"),
        ("data", "directory", 3, "data.directory is 3, not a text"),
        ("train", "seed", 1.5, r"train.seed is 1\.5, not a whole number"),
        ("train", "seed", 10**30, "train.seed is 1000000000000000000000000000000, not a whole number"),
        ("optimizer", "peak_lr", True, "optimizer.peak_lr is True, not a finite number"),
        ("text", "decimals", "2", "text.decimals is '2'"),
    ],
)
def test_wrong_types_in_a_configuration_are_one_line(workdir, section, key, value, message):
    path = workdir / "config.json"
    content = json.loads(path.read_text())
    content["experiment"][section][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_experiment(workdir)


@pytest.mark.parametrize("damage", ["cut", "emptied", "without metadata", "no parameters"])
def test_a_damaged_checkpoint_is_named_with_what_to_do(workdir, damage):
    checkpoint = workdir / "checkpoints/0"
    if damage == "without metadata":
        for path in checkpoint.rglob("_METADATA"):
            path.unlink()
    elif damage == "no parameters":
        shutil.rmtree(checkpoint / "params")
    else:
        for path in checkpoint.rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "cut" else b"")
    with pytest.raises(
        UserError, match=r"checkpoints/0 cannot be read \(.*if it is damaged, delete the folder"
    ) as error:
        load(workdir)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_folder_without_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints/0")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load(workdir)
