"""The GPU benchmark, rehearsed: all parts, at toy size, on this CPU."""

import json
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx

from benchmarks.gpu import bundle, references, run, table
from benchmarks.gpu.cases import CASES, PARTS, Case
from benchmarks.gpu.results import figure
from crystal_jax.checkpoint.formats.hf import write_hf
from crystal_jax.checkpoint.layout import StateSource
from crystal_jax.text.tokenizer import load_tokenizer
from tests.byte_pairs import write_byte_pairs
from tests.experiments import TINY, build


@pytest.fixture(scope="module")
def folder(shared, dataset, tmp_path_factory):
    """A bundle of few crystals."""
    path = tmp_path_factory.mktemp("gpu") / "bundle"
    bundle.make_bundle(shared, path, data=dataset)
    return path


def called(monkeypatch, module, *options):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, options)])
    return module.main()


def outcomes(output):
    return json.loads((output / "gpu.json").read_text())["cases"]


def test_all_parts_are_rehearsed(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft", reason="the peers: pip install -r requirements-peers.txt")
    monkeypatch.setattr(jax, "devices", lambda *args: jax.local_devices(backend="cpu")[:1])
    called(monkeypatch, references, f"--bundle={folder}", "--samples=4", "--steps=2", "--toy")
    pretrained(tmp_path / "smollm2")
    options = f"--bundle={folder}", f"--output={tmp_path}", f"--parts={','.join(PARTS)}", "--dry_run"
    assert called(monkeypatch, run, *options) == 0
    found = outcomes(tmp_path)
    rehearsed = {case.name for case in CASES if case.rehearsed}
    assert {name: outcome["status"] for name, outcome in found.items()} == dict.fromkeys(rehearsed, "measured")
    assert {case.module for case in CASES} == {case.module for case in CASES if case.rehearsed}
    assert found["correct/numbers"]["samples"] == "4 of 4 texts equal the CPU's"
    assert found["correct/numbers"]["losses_float32"]["value"] < 1e-4
    assert found["train/70b-nf4-cudnn"]["tokens_per_s"]["value"] > 0
    exported = tmp_path / "crystal_small"
    assert max(path.stat().st_size for path in exported.iterdir()) <= 16e6
    assert json.loads((exported / "curve.json").read_text())[-1]["step"] == 3
    page = table.tables(json.loads((tmp_path / "gpu.json").read_text()))
    assert "| `train/7b-bf16-einsum` | not measured yet |" in page
    assert "| LoRA step, 7B, bf16: 45 % MFU | not measured yet |" in page  # no data sheet has a CPU
    capsys.readouterr()
    assert called(monkeypatch, run, *options) == 0
    assert capsys.readouterr().out.count("measured before") == len(rehearsed)


def pretrained(path):
    """In place of SmolLM2: a model with a tokenizer.json."""
    path.mkdir()
    write_byte_pairs(path)
    cfg = TINY.__class__(
        **vars(TINY) | {"vocab_size": load_tokenizer("huggingface", path / "tokenizer.json").vocab_size}
    )
    write_hf(path, StateSource(nnx.state(build(cfg)), cfg), dtype="float32")


def test_the_documentation_lists_every_case_and_target():
    page = (Path(__file__).parents[2] / "docs/GPU.md").read_text()
    assert [case.name for case in CASES if f"| `{case.name}` |" not in page] == []
    nothing = {"device": None, "versions": {}, "cases": {}}
    assert [target for target, _ in table.targets(nothing) if f"| {target} |" not in page] == []


def test_a_case_is_a_process_whose_failure_is_recorded(folder, tmp_path, monkeypatch):
    broken = Case("correct/broken", "no_such_module", 20)
    outcome = run.run_case(broken, folder, tmp_path, seconds=60, dry_run=False)
    assert outcome["status"] == "failed"
    assert "No module named benchmarks.gpu.no_such_module" in outcome["reason"][-1]
    monkeypatch.setattr(run, "CASES", (broken,))
    options = f"--bundle={folder}", f"--output={tmp_path}", "--parts=correct"
    assert called(monkeypatch, run, *options) == 1
    assert outcomes(tmp_path)["correct/broken"]["status"] == "failed"


def test_a_case_that_takes_too_long_is_ended(folder, tmp_path):
    outcome = run.run_case(Case("correct/slow", "correct", 1), folder, tmp_path, seconds=0.5, dry_run=False)
    assert outcome["status"] == "out of time"
    assert outcome["seconds"] < 10


def test_no_case_is_begun_that_the_budget_may_not_hold(folder, tmp_path, monkeypatch):
    options = f"--bundle={folder}", f"--output={tmp_path}", "--parts=train", "--budget_seconds=60"
    assert called(monkeypatch, run, *options) == 0
    assert {outcome["status"] for outcome in outcomes(tmp_path).values()} == {"not begun"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--parts=train,fly", "no part fly; there are correct, train, sample, small, smollm2"),
        ("--only=train/1b", "no case train/1b"),
        ("--bundle=nowhere", "has no manifest.json; make it with: python -m benchmarks.gpu.bundle"),
    ],
)
def test_bad_options_are_named(folder, tmp_path, monkeypatch, capsys, option, message):
    with pytest.raises(SystemExit) as ended:
        called(monkeypatch, run, f"--bundle={folder}", f"--output={tmp_path}", option)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_targets_are_judged_by_what_was_measured():
    measured = {"status": "measured", "seconds": 1.0}
    ours = {"tokens_per_s": figure([9, 10, 11], "real tokens/s"), "mfu": figure(40, "%")}
    results = {
        "device": {"kind": "NVIDIA H200"},
        "versions": {},
        "cases": {
            "train/7b-bf16-cudnn": measured | ours,
            "train/7b-bf16-peer": measured | {"tokens_per_s": figure(5, "real tokens/s")},
            "train/7b-bf16-peer-qkvo": measured | {"tokens_per_s": figure(8, "real tokens/s")},
            "sample/7b-cudnn": measured | {"crystals_per_hour_256": figure(300_000, "crystals/h")},
            "correct/numbers": {"status": "failed", "seconds": 3.0, "reason": ["off"]},
        },
    }
    assert [result for _, result in table.targets(results)] == [
        "met: 2 x",
        "**missed**: 40 %",
        "not measured yet",
        "not measured yet",
        "met: 4.42 x",
        "**missed**",
    ]
    assert "tokens_per_s 10 real tokens/s (9–11, n=3)" in table.tables(results)
