import json
import shutil

import pytest

from crystal_jax.checkpoint.models import load_trained
from crystal_jax.checkpoint.workdir import best_step, read_experiment
from crystal_jax.config import MeshConfig
from crystal_jax.data.mp20 import open_split
from crystal_jax.errors import UserError
from crystal_jax.model.flops import train_flops_per_token
from crystal_jax.sharding import make_mesh
from crystal_jax.train.monitoring.profiler import parse_steps
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
        ({"model": {"architecture": "gpt2"}}, "config.model: Gpt2Config .*unexpected keyword argument 'num_kv_heads'"),
        ({"model": {"architecture": "mamba"}}, "architecture='mamba' is none of llama, gpt2"),
        ({"lora": {"targets": ("q", "w")}}, "lora.targets has w"),
        ({"mesh": {"data": 3, "fsdp": 1, "tensor": 1}}, "does not fit 4 devices"),
        ({"tokenizer": {"name": "bpe"}}, "no tokenizer 'bpe'"),
        ({"data": {"seq_len": 8}}, "none of .* crystals can be trained on; the first: .*seq_len is 8"),
        ({"data": {"directory": "/nowhere"}}, "/nowhere is no prepared data set"),
        ({"text": {"decimals": 3}}, "tokenizer.name='atom_coordinate' has tokens for .* two decimals only"),
        ({"text": {"version": "cif"}}, "tokenizer.name='atom_coordinate' has tokens for"),
        (
            {"text": {"version": "cif"}, "tokenizer": {"name": "character"}},
            "task.infill=0.3 must be 0 with text.version='cif'",
        ),
        ({"text": {"version": "v4"}}, "Unknown format version 'v4'"),
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


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_crystals(dataset, tmp_path):
    config = training_config(str(dataset), optimizer={"peak_lr": 1e30, "clip_norm": 1e30, "warmup_steps": 1})
    with pytest.raises(UserError, match=r"step \d+ is .*(nan|inf).*its batch held \S+, .* and \d+ more") as caught:
        train(config, workdir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    (row,) = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    ids = {record.material_id for record in open_split(dataset, "train")}
    assert len(row["crystals"]) > 3
    assert ids.issuperset(row["crystals"])
    assert not (tmp_path / f"run/checkpoints/{row['step']}").exists()


TINY = {"model": {"num_layers": 1}, "task": {"infill": 0.0, "conditions": False}, "data": {"seq_len": 32}}


@pytest.fixture(scope="module")
def judged(dataset, tmp_path_factory):
    """A run that samples, traces two steps, and keeps the best checkpoint."""
    workdir = tmp_path_factory.mktemp("judged") / "run"
    config = training_config(
        str(dataset),
        **TINY,
        optimizer={"peak_lr": 0.3},
        train={
            "num_steps": 8,
            "eval_every": 1,
            "save_every": 1,
            "max_to_keep": 2,
            "eval_num_samples": 5,
            "peak_tflops": 1e-3,
        },
    )
    train(config, workdir=workdir, profile_steps="2:3")
    return workdir


def test_the_last_and_the_best_checkpoints_are_kept(judged):
    losses = curve(judged, "val_loss")
    best = min(losses, key=losses.get)
    assert {int(p.name) for p in (judged / "checkpoints").iterdir() if p.name.isdecimal()} == {best, 7, 8}
    # The last step hardly changes anything, so that rounding may decide between it and the one before.
    assert losses[best_step(judged)] == pytest.approx(losses[best], rel=1e-5)


def test_the_log_says_where_the_time_goes(judged):
    rows = [json.loads(line) for line in (judged / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["step"] == 0
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    for row in steps:
        assert row["tokens_per_second"] > 0
        assert 0 < row["goodput"] < 1
        assert row["data_wait_seconds"] > 0
    flops = train_flops_per_token(read_experiment(judged).model, read_experiment(judged).lora)
    assert steps[-1]["mfu"] == pytest.approx(steps[-1]["tokens_per_second"] * flops / (4 * 1e9))
    spent = [
        sum(row.get(f"{name}_seconds", 0) for row in steps) for name in ("compile", "validation", "save", "sampling")
    ]
    assert all(spent)
    productive = [row["productive_seconds"] for row in steps]
    assert productive == sorted(productive)
    assert not [name for name in steps[-1] if name.startswith("memory")]  # a CPU does not count it


def test_validation_is_told_by_what_a_token_writes(judged):
    names = ("lattice", "element", "coordinate", "end")
    parts = {name: curve(judged, f"val_loss_{name}")[8] for name in names}
    # Two atoms each: 6 numbers of the lattice, 2 elements, 6 coordinates, the end.
    mean = (6 * parts["lattice"] + 2 * parts["element"] + 6 * parts["coordinate"] + parts["end"]) / 15
    assert mean == pytest.approx(curve(judged, "val_loss")[8], rel=1e-5)


def test_samples_are_judged_at_checkpoints(judged):
    for name in ("sample_validity", "sample_structural_validity", "sample_compositional_validity"):
        found = curve(judged, name)
        assert sorted(found) == list(range(1, 9))
        assert {round(5 * value, 6) for value in found.values()} <= set(range(6))
    assert all(
        curve(judged, "sample_validity")[i] <= curve(judged, "sample_structural_validity")[i] for i in range(1, 9)
    )


def test_steps_are_traced_when_asked(judged):
    assert list((judged / "profile").rglob("*.xplane.pb"))
    with pytest.raises(UserError, match="--profile_steps=9: give the first and the last"):
        parse_steps("9")


def test_a_spike_is_skipped_reported_and_in_the_end_stops_the_run(dataset, tmp_path, capfd):
    guard = {"window": 2, "loss_factor": 1.0001, "norm_factor": 0.0, "patience": 2}
    config = training_config(
        str(dataset), **TINY, guard=guard, optimizer={"peak_lr": 3.0, "warmup_steps": 0}, train={"num_steps": 50}
    )
    with pytest.raises(UserError, match=r"2 steps in a row were so far above the median.*guard.loss_factor"):
        train(config, workdir=tmp_path / "run")
    skipped = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert len(skipped) >= 2
    assert "skipped: the loss of step" in capfd.readouterr().err
    assert skipped[-1]["step"] == skipped[-2]["step"] + 1


def test_another_number_of_streams_is_refused(judged, dataset):
    config = training_config(str(dataset), **{**TINY, "data": {"seq_len": 32, "shards": 2}}, train={"num_steps": 9})
    with pytest.raises(UserError, match=r"this run has data.shards=1, not 2"):
        train(config, workdir=judged)


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(judged, dataset, tmp_path):
    shutil.copytree(judged, tmp_path / "run")
    for path in (tmp_path / "run/checkpoints/8/data").iterdir():
        path.rename(path.with_name("process_0-of-1.json"))
    with pytest.raises(UserError, match=r"checkpoints/8 was written by an earlier version: sample from it"):
        train(training_config(str(dataset), **TINY, train={"num_steps": 9}), workdir=tmp_path / "run")


def test_full_training_goes_on_from_a_base(trained, dataset, tmp_path):
    """Its first validation is the base's last one, but for a step of next to no length; it needs the base no more."""
    optimizer = {"peak_lr": 1e-9, "warmup_steps": 0}
    base = tmp_path / "base"
    shutil.copytree(trained, base)
    config = training_config(
        str(dataset), base=str(base), optimizer=optimizer, train={"num_steps": 1, "eval_every": 1, "save_every": 1}
    )
    train(config, workdir=tmp_path / "full")
    assert curve(tmp_path / "full", "val_loss")[1] == pytest.approx(curve(trained, "val_loss")[6], abs=1e-5)
    shutil.rmtree(base)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    assert load_trained(tmp_path / "full", mesh).step == 1
