import json
from pathlib import Path

import pytest

from crystal_jax.cli import main
from crystal_jax.errors import Preempted, UserError
from crystal_jax.sweep import sweep_run
from crystal_jax.sweep.engines import job_name
from crystal_jax.sweep.expand import grid, load_sweep
from crystal_jax.sweep.results import markdown
from crystal_jax.sweep.run import sweep
from tests.experiments import training_config

ROOT = Path(__file__).parents[2]
RATES = [1e-3, 3e-3]


@pytest.fixture
def files(tmp_path, dataset):
    """A configuration that trains in seconds, and a sweep over its learning rate."""
    tree = training_config(
        str(dataset),
        task={"infill": 0.0, "conditions": False},
        model={"num_layers": 1},
        data={"seq_len": 32},
        train={"num_steps": 2, "eval_every": 2, "save_every": 2},
    )
    config = tmp_path / "tiny.py"
    config.write_text(f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({tree!r})\n")
    path = tmp_path / "rates.py"
    path.write_text(
        "from crystal_jax.sweep.expand import grid\n"
        f"CONFIG = {str(config)!r}\n"
        f"def get_sweep():\n    return grid({{'optimizer.peak_lr': {RATES}}})\n"
    )
    return path


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs what would be a process of its own here, and keeps the commands."""
    commands = []

    def start(command):
        commands.append(command)
        return main(command[command.index("train") :])

    monkeypatch.setattr(sweep_run, "_start", start)
    return commands


def test_a_variant_is_chosen_run_by_run(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "variants.py"
    path.write_text(
        "CONFIG = 'configs/smoke.py'\ndef get_sweep():\n"
        "    return [{'variant': v, 'train.seed': 3} for v in ('scratch', 'lora')]\n"
    )
    runs = load_sweep(path, {"data.directory": "elsewhere"})
    assert [run.config for run in runs] == ["configs/smoke.py:scratch", "configs/smoke.py:lora"]
    assert [run.name for run in runs] == ["variant=scratch,seed=3", "variant=lora,seed=3"]
    assert runs[0].flags()[1:] == ["--config.train.seed=3", "--config.data.directory=elsewhere"]


def test_means_over_seeds_are_written_into_a_file(files, in_this_process, tmp_path):
    page = tmp_path / "RESULTS.md"
    page.write_text("<!-- rates -->\n<!-- end rates -->\n")
    sweep(files, output=tmp_path / "runs", into=page)
    lines = page.read_text().splitlines()
    assert lines[1] == "## rates"
    assert [line.split(" | ")[:2] for line in lines if "peak_lr" in line] == [
        [f"| optimizer.peak_lr={rate}", "1"] for rate in RATES
    ]


def test_a_grid_is_all_combinations():
    assert grid({"a": [1, 2], "b": "xy"}) == [{"a": a, "b": b} for a in (1, 2) for b in "xy"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs/sweeps").glob("*.py")), ids=lambda path: path.stem)
def test_shipped_sweeps_build(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = load_sweep(path)
    assert len(runs) > 1
    assert len({job_name(path.stem, run) for run in runs}) == len(runs)
    assert all(len(job_name(path.stem, run)) <= 40 for run in runs)


def test_a_sweep_trains_collects_and_leaves_finished_runs_alone(files, in_this_process, tmp_path, capsys):
    output = tmp_path / "out"
    command = ["sweep", f"--sweep={files}", f"--output={output}"]
    assert main(command) == 0
    assert len(in_this_process) == 2
    table = (output / "results.csv").read_text().splitlines()
    assert table[0].startswith("run,optimizer.peak_lr,status,step,loss,val_loss,best_val_loss")
    assert [row.split(",")[:4] for row in table[1:]] == [[f"peak_lr={x}", str(x), "finished", "2"] for x in RATES]
    said = json.loads((output / "peak_lr=0.003/config.json").read_text())["experiment"]
    assert said["optimizer"]["peak_lr"] == 3e-3
    assert "| peak_lr=0.001 | 0.001 | finished | 2 |" in capsys.readouterr().out
    # What is finished stays; what is not is gone on with.
    (output / "peak_lr=0.003/checkpoints/2").rename(tmp_path / "elsewhere")
    assert main(command) == 0
    assert len(in_this_process) == 3
    assert f"--workdir={output}/peak_lr=0.003" in in_this_process[-1]


def test_a_run_that_fails_does_not_keep_the_others(files, monkeypatch, tmp_path):
    statuses = iter([1, 0])
    monkeypatch.setattr(sweep_run, "_start", lambda _: next(statuses))
    with pytest.raises(UserError, match=r"1 of 2 runs failed, the first: peak_lr=0.001"):
        sweep(files, output=tmp_path / "out")
    assert "not begun" in (tmp_path / "out/results.md").read_text()
    monkeypatch.setattr(sweep_run, "_start", lambda _: 75)
    with pytest.raises(Preempted, match=r"peak_lr=0.001"):
        sweep(files, output=tmp_path / "out")


@pytest.mark.parametrize("engine", ["xpk", "skypilot", "slurm"])
def test_jobs_are_submitted_once(files, engine, monkeypatch, tmp_path, capsys):
    commands = []
    monkeypatch.setattr(sweep_run, "_start", lambda command: commands.append(command) or 0)
    arguments = ["sweep", f"--sweep={files}", f"--output={tmp_path}/out", f"--engine={engine}"]
    arguments += ["--engine_options=--spot=no --bucket=b", "--set=train.num_steps=7"]
    assert main([*arguments, "--dry_run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert shown[0].startswith(f"launch/{engine}.sh --name=rates-")
    for part in ("--spot=no --bucket=b -- train", "--config.train.num_steps=7", "peak_lr=0.001", "--distributed"):
        assert part in shown[0]
    assert not (tmp_path / "out").exists()
    assert main(arguments) == main(arguments) == 0
    assert len(commands) == 2
    assert main([*arguments, "--resubmit"]) == 0
    assert len(commands) == 4


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("CONFIG = 'nowhere.py'\ndef get_sweep(): return [{{}}]", "nowhere.py: no such Python file"),
        ("CONFIG = '{config}'\ndef get_sweep(): return []", "returns no runs"),
        ("CONFIG = '{config}'\ndef get_sweep(): return [{{'optimizer.peak_lrr': 1}}]", "peak_lrr"),
        ("CONFIG = '{config}'\ndef get_sweep(): return [{{'optimizer.peak_lr': -1.0}}]", "must be positive"),
        ("CONFIG = '{config}'\ndef get_sweep(): return [{{}}, {{}}]", "the same run twice: default"),
        ("get_sweep = 3", "is no sweep"),
        ("1 / 0", "does not load: division by zero"),
    ],
)
def test_bad_sweeps_are_one_clear_line(files, body, message, tmp_path, capsys):
    path = tmp_path / "bad.py"
    path.write_text(body.format(config=tmp_path / "tiny.py"))
    assert main(["sweep", f"--sweep={path}", f"--output={tmp_path}/out", "--dry_run"]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_markdown_leaves_out_what_is_not_there():
    import pandas as pd

    table = pd.DataFrame([{"run": "a|b", "loss": 1.23456}, {"run": "c", "loss": None}])
    assert markdown(table) == "| run | loss |\n| --- | --- |\n| a\\|b | 1.235 |\n| c |  |\n"
