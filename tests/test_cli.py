import importlib
import re
from pathlib import Path

import absl.flags
import pytest

from crystal_jax import __version__, cli
from crystal_jax.cli import COMMANDS, main

ROOT = Path(__file__).parents[1]


def test_usage_lists_every_command(capsys):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"\n  {name} " in usage for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_describes_every_flag(command, capsys):
    assert main([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    flags = [line for line in lines if line.startswith("  --")]
    assert len(flags) >= 2
    assert all(len(line.split(maxsplit=1)) == 2 for line in flags), "a flag without a description"


def test_unknown_commands_and_flags_get_one_line(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'; did you mean 'train'?" in capsys.readouterr().err
    assert main(["evaluate", "--sample=x"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean: samples" in error
    assert main(["evaluate", "stray"]) == 2
    assert error.count("\n") == 1


def test_a_mistyped_config_key_suggests_the_right_one(capsys):
    status = main(["train", "--config=configs/mp20_open.py", "--workdir=x", "--config.optimizer.peak_lrr=1"])
    error = capsys.readouterr().err
    assert status == 2
    assert "peak_lrr" in error
    assert "peak_lr" in error.replace("peak_lrr", "")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--checkpoint={tmp}", "--output={tmp}/o"], "is no training workdir"),
        (["evaluate", "--samples={tmp}/none.csv", "--output={tmp}/o"], "none.csv"),
        (["report", "--evaluation={tmp}"], "metrics.json"),
        (["prepare", "--dataset=mp21", "--data_dir={tmp}"], "mp21"),
        (["train", "--config=nowhere.py", "--workdir={tmp}/w"], "nowhere.py"),
    ],
)
def test_bad_input_is_one_line_and_a_nonzero_exit(arguments, message, tmp_path, capsys):
    assert main([a.format(tmp=tmp_path) for a in arguments]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("quantize.kind=nf4", "there is no config.quantize in crystal_tiny.py:lora; it has: base, data, execution, "),
        ("quantize=3", "there is no config.quantize in crystal_tiny.py:lora; it has: base, data, execution, "),
        (
            "data.exclude_elements=H",
            "there is no config.data.exclude_elements in crystal_tiny.py:lora; it has: batch_size, directory, ",
        ),
        ("train.num_steps.x=3", "config.train.num_steps in crystal_tiny.py:lora is a value, not a section"),
        ("train.num_steps=nan", "invalid literal for int"),
        ("optimizer.peak_lr=nan", "flag --config.optimizer.peak_lr=nan: it must be a finite number"),
        ("optimizer.peak_lr=inf", "flag --config.optimizer.peak_lr=inf: it must be a finite number"),
    ],
)
def test_an_override_that_does_not_fit_is_one_line(override, message, tmp_path, capsys):
    arguments = [f"--config={ROOT / 'configs/crystal_tiny.py'}:lora", f"--workdir={tmp_path / 'w'}"]
    assert main(["train", *arguments, f"--config.{override}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def flags_of(command):
    """The flags of a command, as the command line defines them."""
    flag_values = absl.flags.FlagValues()
    importlib.import_module(COMMANDS[command][0]).define_flags(flag_values)
    return flag_values


# What a flag that names a file or folder is called; a new flag of this kind belongs here.
PATHS = {
    "samples", "output", "structures", "reference", "train_reference", "energy_weights", "hull", "hull_elements",
    "targets", "scores",
    "infill", "evaluation", "runs", "training_log", "compare", "checkpoint", "cif", "requests", "sweep",
    "markdown_file", "workdir", "manual_dir", "data_dir", "input", "base", "architecture", "partition_rules",
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_a_tilde_is_the_home_folder_in_every_path(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = flags_of(command)
    # Flags that name no path are of these kinds; others must be in PATHS, or the help must say what they are.
    for name in found:
        if name not in PATHS:
            continue
        fresh = flags_of(command)
        for flag in fresh:
            fresh[flag].validators = []
        value = "a=~/x,~/y" if name == "compare" else "~/x,~/y" if name == "infill" else "~/x"
        cli._parse(fresh, command, [f"--{name}={value}"])
        shown = fresh[name].value
        text = ",".join(shown) if isinstance(shown, list) else shown
        assert text == value.replace("~", str(tmp_path)), f"--{name} of {command}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_that_takes_a_path_is_known(command):
    """Whose help says so: a file, a folder, a workdir."""
    words = re.compile(r"\b(files?|folders?|director(y|ies)|workdirs?)\b", re.IGNORECASE)
    others = {"step", "extxyz", "hlo", "dry_run", "resubmit", "engine_options", "config", "profile_steps", "to", "from"}
    found = flags_of(command)
    texts = ("string", "comma separated list of strings", "multi string")
    unknown = {name for name in found if found[name].flag_type() in texts and words.search(found[name].help or "")}
    assert unknown <= PATHS | others


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError])
def test_a_full_disk_is_one_line(kind, monkeypatch, tmp_path, capsys):
    """TensorStore, which writes checkpoints, raises errors of its own."""
    text = "RESOURCE_EXHAUSTED: Error writing local file: No space left on device [OS error 28: ENOSPC]"
    error = OSError(28, "No space left on device", "x") if kind is OSError else kind(text)

    def full(_):
        raise error

    monkeypatch.setattr("crystal_jax.report.run.main", full)
    assert main(["report", f"--evaluation={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "o space" in said
    monkeypatch.setattr("crystal_jax.report.run.main", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["report", f"--evaluation={tmp_path}"])


def test_a_tilde_elsewhere_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    expected = {
        "--output=~": "--output=/home/me",
        "~/x": "/home/me/x",
        "--compare=a=~/x,b=~/y": "--compare=a=/home/me/x,b=/home/me/y",
        "--config=~/c.py:lora": "--config=/home/me/c.py:lora",
        "--config.data.directory=~/data": "--config.data.directory=/home/me/data",
        "--output=x~/y": "--output=x~/y",
        "--output=/x/~/y": "--output=/x/~/y",
        "--output=~nobody-at-all/y": "--output=~nobody-at-all/y",
    }
    assert {argument: cli._at_home(argument) for argument in expected} == expected


def test_a_dash_in_a_flags_name_is_an_underscore(tmp_path, capsys):
    found = flags_of("demo")
    cli._parse(found, "demo", ["--num-samples=7", "--max-entries", "9", f"--output={tmp_path}/a-b"])
    assert (found.num_samples, found.max_entries, found.output) == (7, 9, f"{tmp_path}/a-b")
    found = flags_of("evaluate")
    cli._parse(found, "evaluate", ["--samples=-x-", "--output=y", "--no-progress", "--energy-model=chgnet"])
    assert (found.samples, found.progress, found.energy_model) == ("-x-", False, "chgnet")
    assert main(["demo", "--num-sample=7"]) == 2
    assert "num_sample" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "NaN"])
def test_no_flag_takes_a_number_that_is_not_finite(command, value):
    found = flags_of(command)
    numbers = [name for name in found if isinstance(found[name].parser, absl.flags.FloatParser)]
    for name in numbers:
        fresh = flags_of(command)
        for flag in fresh:
            fresh[flag].validators = []
        with pytest.raises(absl.flags.Error):
            cli._parse(fresh, command, [f"--{name}={value}"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_whole_number_has_a_largest_value(command):
    found = flags_of(command)
    for name in found:
        if isinstance(found[name].parser, absl.flags.IntegerParser):
            fresh = flags_of(command)
            for flag in fresh:
                fresh[flag].validators = []
            with pytest.raises(absl.flags.Error):
                cli._parse(fresh, command, [f"--{name}={10**20}"])
