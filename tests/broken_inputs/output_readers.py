"""Damaged files that commands write, or that go with them: hulls, samples, scores, relaxations, evaluations."""

import json
import math

import pandas as pd

from crystal_jax.energy.convex_hull.hull import read_hull
from crystal_jax.energy.relaxation.journal import read_journals
from crystal_jax.evaluate.evaluation import read_evaluation
from crystal_jax.evaluate.metrics.external_results import infill_metrics, read_infilled, read_scores
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release
from tests.broken_inputs.damage import Reader
from tests.broken_inputs.valid_folders import evaluation_folder, hull_folder


def output_folder(folder):
    folder.mkdir()
    request = {"seed": 0, "elements": ["Li", "P"], "step": 3}
    (folder / "run.json").write_text(json.dumps({"request": request, "provenance": {"python": "3"}}))
    rows = [{"index": i, "status": "complete", "prompt": "p", "text": "t", "reason": None} for i in range(3)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_output(folder):
    try:
        ensure_same_run(folder, {"seed": 0, "elements": ["Li", "P"], "step": 3}, {})
        JsonlLog(folder / "samples.jsonl", {"index": int, "status": str, "prompt": str, "text": str}).rows()
    finally:
        release(folder)


def scores_folder(folder):
    folder.mkdir()
    row = {
        "index": 0,
        "name": "a",
        "reason": None,
        "perplexity": 2.0,
        "ipt": 0.1,
        "translations": [{"shift": [0, 0, 0]}],
    }
    (folder / "scores.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"index": 1}) + "\n")
    (folder / "elements.csv").write_text("symbol,probability,log_prob,allowed,baseline\nLi,0.7,-1,True,0.5\n")
    (folder / "run.json").write_text(json.dumps({"request": {"element": "Li"}}))


def read_model_results(folder):
    rows = pd.DataFrame({"name": ["a", "b"]}).assign(e_above_hull=math.nan, valid=True)
    read_scores(folder / "scores.jsonl", num_samples=len(rows))
    infill_metrics([read_infilled(folder)], rows)


def relaxations_folder(folder):
    folder.mkdir()
    row = {"key": "k", "status": "converged", "reason": "", "energy": -1.0, "steps": 3, "relaxed_cif": "data_"}
    (folder / "host-1.jsonl").write_text(json.dumps(row) + "\n")


def read_hull_file(name):
    return lambda folder: read_hull(folder / name)


JSON_READERS = {
    "hull": Reader(hull_folder, "hull.json", read_hull_file("hull.json")),
    "elements of a hull": Reader(hull_folder, "x-elemental-reference-entries.json", read_hull_file("hull.csv")),
    "run.json": Reader(output_folder, "run.json", read_output),
    "scores": Reader(scores_folder, "scores.jsonl", read_model_results),
    "relaxations": Reader(relaxations_folder, "host-1.jsonl", read_journals),
    "metrics.json": Reader(evaluation_folder, "metrics.json", read_evaluation),
}
READERS = {
    **JSON_READERS,
    "hull.csv": Reader(hull_folder, "hull.csv", read_hull_file("hull.csv")),
    "samples.jsonl": Reader(output_folder, "samples.jsonl", read_output),
    "elements.csv": Reader(scores_folder, "elements.csv", read_model_results),
    "structures.csv": Reader(evaluation_folder, "structures.csv", read_evaluation),
}
