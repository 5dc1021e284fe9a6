import json

import pytest

from crystal_jax.errors import UserError
from crystal_jax.sweep.expand import Run
from crystal_jax.sweep.summary import row_of, summary, write_between_marks


def runs_of(variant, **overrides):
    return [
        Run(f"{variant}-{seed}", f"x.py:{variant}", {**overrides, "train.seed": seed, "data.seed": seed})
        for seed in (0, 1)
    ]


def finish(folder, losses, validity, scores=()):
    (folder / "checkpoints/9").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"experiment": {"train": {"num_steps": 9}}}))
    rows = [{"step": i, "val_loss": loss} for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"step": 9, "loss": 1.0}, *rows]))
    (folder / "evaluation").mkdir()
    rates = {"structural_validity": {"value": validity, "hits": 1, "total": 2}, "compositional_validity": None}
    rates |= {"wasserstein_density": {"value": 0.25}}
    (folder / "evaluation/metrics.json").write_text(json.dumps(rates))
    (folder / "scores").mkdir()
    (folder / "scores/scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))


def test_seeds_are_averaged_and_published_figures_stand_beside(tmp_path):
    runs = [*runs_of("lm_ac"), *runs_of("cif")]
    scored = [
        {"reason": None, "log_prob": -30.0, "ipt": 0.5},
        {"reason": None, "log_prob": -50.0, "ipt": 1.5},
        {"reason": "no CIF"},
    ]
    finish(tmp_path / "lm_ac-0", [3.0, 2.0, 2.5], 0.9, scored)
    finish(tmp_path / "lm_ac-1", [2.25], 0.8)
    cells = summary(runs, tmp_path, {"lm_ac": {"structural_validity": 95.8}})
    assert cells == [
        [
            "",
            "seeds",
            "validation loss, nats a token",
            "nats a crystal",
            "IPT",
            "structure valid, %",
            "density distance",
        ],
        ["lm_ac", "2", "2.12 (2–2.25)", "40", "1", "85 (80–90) / 95.8", "0.25 (0.25–0.25)"],
        ["cif", "0", "", "", "", "", ""],
    ]
    with pytest.raises(UserError, match="PUBLISHED has validity"):
        summary(runs, tmp_path, {"cif": {"validity": 1.0}})


def test_rows_are_named_by_all_but_their_seeds():
    first, second = runs_of("lora", **{"lora.rank": 4, "lora.targets": ("q",)})
    assert row_of(first) == row_of(second) == "lora lora.rank=4 lora.targets=('q',)"
    assert row_of(Run("x", "x.py", {"train.seed": 1})) == "default"


def test_a_table_takes_the_place_of_the_one_before(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n<!-- a -->\nold\n<!-- end a -->\nrest\n")
    for text in ("new\n", "newer\n"):
        write_between_marks(path, "a", text)
    assert path.read_text() == "# Results\n<!-- a -->\nnewer\n<!-- end a -->\nrest\n"
    with pytest.raises(UserError, match=r"has no lines <!-- b --> and <!-- end b -->"):
        write_between_marks(path, "b", "")
