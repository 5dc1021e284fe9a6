"""What the launch scripts would do, and that they and the YAML beside them are in order."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from crystal_jax.cli import COMMANDS, main
from tests.experiments import training_config
from tests.train.supervised import PREEMPTED, curve, saved

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
ENGINES = [path for path in SCRIPTS if "read_options" in path.read_text() and path.stem != "options"]
TRAIN = ["--", "train", "--config=configs/smoke.py", "--config.model.dtype=a b", "--workdir=/bucket/x"]
PLACE = ["--project=p", "--zone=z"]
TOOLS = {"gcloud", "xpk", "sky", "squeue", "scancel"}


def call(script, *arguments):
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([ROOT / "launch" / script, *arguments], capture_output=True, text=True, env=environment)


def shown(script, *arguments):
    """The words of every command that a dry run prints."""
    done = call(script, *arguments, "--dry_run") if "--" not in arguments else call(script, "--dry_run", *arguments)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line, comments=True) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_is_in_order(path):
    checker = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
    done = subprocess.run([checker, "--external-sources", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_yaml_is_in_order():
    files = sorted((ROOT / "launch").glob("*.yaml"))
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "-d", rules, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert files
    assert done.returncode == 0, done.stdout
    job = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
    assert job["resources"]["job_recovery"]["recover_on_exit_codes"] == [PREEMPTED]


@pytest.mark.parametrize("path", ENGINES, ids=lambda path: path.name)
def test_scripts_explain_themselves_and_refuse_what_they_do_not_know(path):
    done = call(path.name, "--help")
    assert done.returncode == 0
    options = re.search(r'^OPTIONS="(.*)"', path.read_text(), re.MULTILINE)[1].split()
    assert all(f"--{name}=" in done.stdout for name in options if name not in ("runtime",))
    assert "set -euo" not in done.stdout
    for arguments, message in ((["--colour=red"], "no option --colour"), (["stray"], "unexpected argument stray")):
        done = call(path.name, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_local_processes_differ_by_their_number_alone():
    environment, *commands = shown("local.sh", "--processes=3", "--devices=2", "--port=1234", *TRAIN)
    assert environment[:2] == ["export", "JAX_PLATFORMS=cpu"]
    assert environment[2].endswith("--xla_force_host_platform_device_count=2")
    for i, words in enumerate(commands):
        assert words[1:4] == ["-m", "crystal_jax.cli", "train"]
        assert "--config.model.dtype=a b" in words
        assert words[-4:] == [
            "--distributed",
            "--coordinator_address=localhost:1234",
            "--num_processes=3",
            f"--process_id={i}",
        ]
    assert len(commands) == 3


def test_tpu_slices_are_asked_for_set_up_and_given_back():
    create, wait, archive, copy, setup, run = [
        words for words in shown("tpu_vm.sh", "--action=all", "--bucket=b", *PLACE, *TRAIN) if words
    ]
    assert create[:5] == ["gcloud", "compute", "tpus", "queued-resources", "create"]
    assert {"--accelerator-type=v5litepod-16", "--spot", "--project=p", "--zone=z"} <= set(create)
    assert wait[4] == "describe"
    assert archive[:2] == ["git", "archive"]
    assert copy[4] == "scp"
    assert setup[-1].endswith("crystal_jax/launch/tpu_host.sh b")
    assert "--worker=all" in run
    remote = run[-1].removeprefix("--command=")
    assert shlex.split(remote)[-4:] == TRAIN[1:]
    (delete,) = shown("tpu_vm.sh", "--action=delete", *PLACE)
    assert delete[4] == "delete"
    (without,) = shown("tpu_vm.sh", "--action=create", "--spot=no", *PLACE)
    assert "--spot" not in without


def test_xpk_jobs_are_started_again():
    place = [*PLACE, "--cluster=c"]
    (run,) = shown("xpk.sh", "--name=n", "--image=i", *place, *TRAIN)
    assert run[:3] == ["xpk", "workload", "create"]
    assert {"--restart-on-exit-codes=75", "--max-restarts=100", "--docker-image=i", "--num-slices=1"} <= set(run)
    assert shlex.split(run[-1].removeprefix("--command="))[-4:] == TRAIN[1:]
    (cluster,) = shown("xpk.sh", "--action=cluster", *place)
    (storage,) = shown("xpk.sh", "--action=storage", "--bucket=b", *place)
    assert cluster[:3] == ["xpk", "cluster", "create"]
    assert {"--type=gcsfuse", "--bucket=b", "--mount-point=/bucket"} <= set(storage)


def test_skypilot_gets_the_command_as_one_word():
    (run,) = shown("skypilot.sh", "--name=n", "--bucket=b", *TRAIN)
    assert run[:3] == ["sky", "jobs", "launch"]
    assert run[-1] == "launch/skypilot.yaml"
    (command,) = [word.removeprefix("COMMAND=") for word in run if word.startswith("COMMAND=")]
    assert shlex.split(command) == TRAIN[1:]


def test_evaluations_on_ray_have_a_head_and_workers():
    evaluation = ["--", "evaluate", "--samples=a b.csv", "--output=e"]
    lines = call("ray_evaluate.sh", "--name=n", "--nodes=3", "--cores=8", "--dry_run", *evaluation).stdout.splitlines()
    assert "#SBATCH --job-name=n" in lines
    assert "#SBATCH --cpus-per-task=8" in lines
    assert any("ray start --head --port=6379 --num-cpus=8" in line for line in lines)
    assert any(line.strip().startswith("srun --nodes=2 --ntasks=2") for line in lines)
    words = shlex.split(next(line for line in lines if "crystal-jax" in line))
    assert words[words.index("evaluate") :] == [*evaluation[1:], "--ray_address=$head:6379"]
    refused = call("ray_evaluate.sh", "--name=n", "--dry_run", "--", "train")
    assert (refused.returncode, refused.stdout) == (2, "")
    nameless = call("ray_evaluate.sh", "--dry_run", *evaluation)
    assert "--name=… is missing" in nameless.stderr


def test_slurm_jobs_queue_themselves_again():
    done = call("slurm.sh", "--name=n", "--nodes=2", "--gpus=4", "--partition=gpu", "--dry_run", *TRAIN)
    job = done.stdout
    for line in ("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--partition=gpu", "--signal=TERM@120"):
        assert f"#SBATCH {line}\n" in job
    assert '[ "$status" != 75 ] || scontrol requeue' in job
    (step,) = [line for line in job.splitlines() if line.startswith("srun")]
    assert shlex.split(step.split(" || ")[0])[-4:] == TRAIN[1:]
    script = job.split("\n", 1)[1].rsplit("END", 1)[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


@pytest.mark.parametrize("engine", ["local", "xpk", "skypilot", "slurm"])
def test_shards_of_samples_add_up_and_have_seeds_of_their_own(engine):
    commands = shown(
        *("sample_shards.sh", f"--engine={engine}", "--shards=3", "--num_samples=10", "--checkpoint=c", "--output=o"),
        *("--", "--distributed", "--constraints=charge,distance"),
    )
    wanted = [("--num_samples=4", "--seed=0"), ("--num_samples=3", "--seed=1"), ("--num_samples=3", "--seed=2")]
    for i, (words, (number, seed)) in enumerate(zip(commands, wanted, strict=True)):
        assert {number, seed, f"--output=o/shard-{i}", "sample"} <= set(words)
        assert {"--distributed", "--constraints=charge,distance"} <= set(words)
        assert engine == "local" or words[0] == f"launch/{engine}.sh"


def test_shards_of_samples_become_one_table(tmp_path):
    for i in range(3):
        (tmp_path / f"shard-{i}").mkdir()
        (tmp_path / f"shard-{i}/samples.csv").write_text(f'gen_str,cif\n"a\n{i}","x\ny"\n')
        (tmp_path / f"shard-{i}/samples.jsonl").write_text(f'{{"seed": {i}}}\n')
    done = call("sample_shards.sh", "--action=merge", "--shards=3", f"--output={tmp_path}")
    assert done.returncode == 0
    assert (tmp_path / "samples.csv").read_text() == "gen_str,cif\n" + "".join(f'"a\n{i}","x\ny"\n' for i in range(3))
    assert (tmp_path / "samples.jsonl").read_text() == "".join(f'{{"seed": {i}}}\n' for i in range(3))
    done = call("sample_shards.sh", "--action=merge", "--shards=4", f"--output={tmp_path}")
    assert done.returncode == 2
    assert "shard-3/samples.csv is missing" in done.stderr


def test_no_secrets_and_no_persons_paths():
    for path in [*(ROOT / "launch").iterdir(), ROOT / "docs/PODS.md"]:
        text = path.read_text()
        assert not re.search(r"/home/\w+|/Users/\w+|AIza|BEGIN .*PRIVATE KEY|hf_\w{20}", text), path


def test_commands_in_the_guide_exist(capsys):
    """Every crystal-jax command of docs/PODS.md has the flags it is given, every script its options."""
    text = (ROOT / "docs/PODS.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    found = 0
    for line in "\n".join(blocks).splitlines():
        for command, rest in re.findall(r"(?:crystal-jax|--) ([a-z]+) (.*)", line):
            if command not in COMMANDS:
                continue
            assert main([command, "--help"]) == 0
            described = capsys.readouterr().out
            for flag in re.findall(r"(?:^|\s)--([a-z_]+)", rest):
                assert f"--{flag} " in described or flag == "config", f"{command} --{flag}: {line}"
            found += 1
        for script in re.findall(r"launch/\w+\.sh", line):
            assert (ROOT / script).is_file(), line
            found += 1
    assert found > 5


def test_two_real_processes_train_leave_when_asked_and_go_on(dataset, tmp_path):
    """The whole way by the command line: launch/local.sh, SIGTERM, the same command again."""
    tree = training_config(
        str(dataset),
        model={"num_layers": 1},
        task={"infill": 0.0, "conditions": False},
        data={"seq_len": 32, "shards": 2},
        train={"num_steps": 4_000, "save_every": 4_000, "eval_every": 4_000, "eval_num_samples": 4},
    )
    config = tmp_path / "tiny.py"
    config.write_text(f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({tree!r})\n")
    workdir = tmp_path / "run"
    command = [ROOT / "launch/local.sh", "--processes=2", "--devices=2", f"--logs={tmp_path}/logs", "--"]
    command += ["train", f"--config={config}", f"--workdir={workdir}"]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 240
        while max(curve(workdir), default=0) < 3 and time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        said = job.communicate(timeout=240)[1]
    assert job.returncode == PREEMPTED, said[-2000:]
    (step,) = saved(workdir)
    assert f"step {step} is saved" in said
    more = [*command, f"--config.train.num_steps={step + 2}"]
    done = subprocess.run(more, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert saved(workdir)[-1] == max(curve(workdir)) == step + 2
    assert list(curve(workdir, "sample_validity")) == [step + 2]
    assert "loss" not in (tmp_path / "logs/process1.log").read_text()  # the first one speaks
