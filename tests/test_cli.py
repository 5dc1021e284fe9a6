import pytest

from crystal_jax import __version__
from crystal_jax.cli import COMMANDS, main


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
