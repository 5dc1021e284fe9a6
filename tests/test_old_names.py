"""Names of the version before are accepted, each with one line that states the present one."""

import pytest

from crystal_jax import cli, old_names
from crystal_jax.checkpoint.models import describe
from crystal_jax.config import from_config_dict
from crystal_jax.sample.requests import read_requests
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer
from tests.experiments import training_config


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(old_names, "_warned", set())


@pytest.mark.parametrize(
    ("command", "given", "present"),
    [
        ("sample", ["--redraws=3", "--seed=1"], ["--max_retries=3", "--seed=1"]),
        ("sample", ["--without", "H,O"], ["--exclude_elements", "H,O"]),
        ("compile", ["--what=train", "--rows=4"], ["--program=train", "--batch_size=4"]),
        ("dft write", ["--below=0.1"], ["--max_e_above_hull=0.1"]),
        ("infill", ["--charge_rule", "--site=0", "--radius_rule"], ["--site=0", "--constraints=charge,radius"]),
        ("train", ["--config.train.keep=3"], ["--config.train.max_to_keep=3"]),
        ("train", ["--config.train.num_steps=3"], ["--config.train.num_steps=3"]),
        ("evaluate", ["--output=redraws"], ["--output=redraws"]),
    ],
)
def test_flags(command, given, present, capsys):
    assert old_names.present_flags(command, given) == present
    assert old_names.present_flags(command, given) == present
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == sum(old != new for old, new in zip(given, present, strict=False)) or command == "infill"
    assert all("is now called" in line for line in lines)


def test_every_present_flag_exists(capsys):
    for command, names in old_names.FLAGS.items():
        assert cli.main([*command.split(), "--help"]) == 0
        text = capsys.readouterr().out
        assert [new for new in names.values() if f"--{new}" not in text] == []
        assert [old for old in names if f"  --{old} " in text] == []


def test_configurations_of_older_runs(capsys):
    config = training_config("data")
    train, text = config["train"], config["text"]
    train["keep"], text["version"] = 3, "v3"
    experiment = from_config_dict(config, vocab_size=AtomCoordinateTokenizer().vocab_size)
    assert experiment.train.max_to_keep == 3
    assert experiment.text.version == "composition_first"
    said = capsys.readouterr().err
    assert "config.train.keep is now called config.train.max_to_keep" in said
    assert "text format 'v3' is now called 'composition_first'" in said


def test_columns_of_requests(tmp_path, capsys):
    (tmp_path / "requests.csv").write_text("pretty_formula,without\nNaCl,Fe O\n")
    (request,) = read_requests(tmp_path / "requests.csv")
    assert request["exclude_elements"] == ("Fe", "O")
    assert "column 'without' is now called 'exclude_elements'" in capsys.readouterr().err


def test_tables_of_older_evaluations(capsys):
    kinds = {"name": "str", "dft_status": "str", "failure_reason": "str"}
    types, present = old_names.present_types(["name", "dft", "other", "failure_reason"], kinds, old_names.COLUMNS)
    assert types == {"name": "str", "dft": "str", "failure_reason": "str"}
    assert present == {"dft": "dft_status"}
    assert "column 'dft' is now called 'dft_status'" in capsys.readouterr().err


def test_the_released_model_has_present_names(capsys):
    assert describe("crystal-tiny").text.version == "composition_first"
    assert capsys.readouterr().err == ""
