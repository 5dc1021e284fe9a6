import json
import shutil

import pytest

from crystal_jax.errors import UserError
from crystal_jax.train.run import train
from tests.experiments import training_config


def curve(workdir, key="loss"):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row[key] for row in rows if key in row}


@pytest.mark.parametrize("stop_after", [3, 4])
def test_an_interrupted_run_continues_as_if_it_never_stopped(trained, dataset, tmp_path, stop_after):
    config = training_config(str(dataset))
    train(config, workdir=tmp_path / "run", stop_after=stop_after)
    assert set(curve(tmp_path / "run")) == set(range(1, stop_after + 1))
    train(config, workdir=tmp_path / "run")
    assert curve(tmp_path / "run") == curve(trained)  # to the bit
    assert curve(tmp_path / "run", "val_loss")[6] == curve(trained, "val_loss")[6]


def test_steps_after_the_last_checkpoint_are_run_again(trained, dataset, tmp_path):
    """A crash between two checkpoints: the log is ahead of them, and its last line is cut."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints/6")
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    train(training_config(str(dataset)), workdir=workdir)
    assert curve(workdir) == curve(trained)


def test_a_finished_run_is_left_alone(trained, dataset, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    train(training_config(str(dataset)), workdir=workdir)
    assert curve(workdir) == curve(trained)


def test_lora_on_a_base_starts_from_it_and_does_not_save_it(trained, dataset, tmp_path):
    config = training_config(
        str(dataset),
        lora={"rank": 2},
        base=str(trained),
        train={"num_steps": 2, "eval_every": 1, "save_every": 2},
    )
    train(config, workdir=tmp_path / "lora")
    base_loss = curve(trained, "val_loss")[6]
    assert curve(tmp_path / "lora", "val_loss")[1] == pytest.approx(base_loss, abs=0.05)
    saved = json.loads((tmp_path / "lora/checkpoints/2/params/_METADATA").read_text())
    names = {key for key in saved["tree_metadata"] if "kernel" in key or "embedding" in key}
    assert not names
    assert any("lora_a" in key for key in saved["tree_metadata"])


def test_a_workdir_of_another_model_is_refused(trained, dataset):
    with pytest.raises(UserError, match=r"another model: .*embed_dim=32 there, 16 here.*choose another --workdir"):
        train(training_config(str(dataset), model={"embed_dim": 16}), workdir=trained)


def test_a_folder_of_something_else_is_refused(dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty and holds no"):
        train(training_config(str(dataset)), workdir=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"num_kv_heads": 3}}, "num_heads=4 is not a multiple of model.num_kv_heads=3"),
        ({"model": {"colour": 3}}, "config.model: .*unexpected keyword argument 'colour'"),
        ({"lora": {"targets": ("q", "w")}}, "lora.targets has w"),
        ({"mesh": {"data": 3, "fsdp": 1, "tensor": 1}}, "does not fit 4 devices"),
        ({"tokenizer": {"name": "bpe"}}, "no tokenizer 'bpe'"),
        ({"data": {"seq_len": 8}}, "none of .* crystals can be trained on; the first: .*seq_len is 8"),
        ({"data": {"directory": "/nowhere"}}, "/nowhere is no prepared data set"),
        ({"text": {"version": "v3"}}, "Unknown format version 'v3'"),
        ({"task": {"infill": 1.5}}, "infill=1.5 is not a share"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_bad_configurations_are_one_clear_line(dataset, tmp_path, changes, message):
    config = training_config(str(dataset))
    for section, values in changes.items():
        config[section] = {**config[section], **values}
    with pytest.raises(UserError, match=message) as caught:
        train(config, workdir=tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run(dataset, tmp_path):
    config = training_config(str(dataset), optimizer={"peak_lr": 1e30, "clip_norm": 1e30, "warmup_steps": 1})
    with pytest.raises(UserError, match=r"step \d+ is .*(nan|inf)"):
        train(config, workdir=tmp_path / "run")
