"""The page of docs/TPU.md, from reports that are at hand."""

import json
from pathlib import Path

from crystal_jax.compile.tpu_page.table import document, experiment_of, load_or_compile
from crystal_jax.compile.tpu_page.targets import CHOICES, ROWS, SAMPLING, TRAINING

CASES = (*TRAINING, *SAMPLING, *CHOICES, *ROWS)
REFUSED = "it needs 99.9GiB of a chip's memory, which has 15.75GiB"


def test_every_case_has_a_file_of_its_own():
    distinct = {
        (c.size, c.variant, c.topology, c.what, c.num_slices, c.mesh, c.rows, c.coded, c.changes, c.xla) for c in CASES
    }
    assert len({case.key for case in CASES}) == len(distinct)


def test_changes_reach_the_configuration():
    changed = next(case for case in CHOICES if case.changes == (("optimizer.accumulate", 4),))
    assert experiment_of(changed, Path("configs")).optimizer.accumulate == 4


def test_the_page_shows_every_case_and_names_what_is_missed(step, tmp_path):
    _, report = step
    results = {}
    for case in CASES:
        content = report.to_json() | {"expected_bytes": 1.0}  # far less than any traffic
        path = tmp_path / "O1" / f"{case.key}.json"  # reports that are there are not made again
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"refused": REFUSED} if case is TRAINING[1] else content))
        results[case.key] = load_or_compile(case, Path("configs"), tmp_path, level="O1")
    page = document(results, level="O1")
    assert page.count("| 7b `tpu` | v5e-16 (v5e:4x4) |") >= 2
    assert "2 × v5e-16" in page
    assert REFUSED in page
    fits, products, traffic = (line for line in page.splitlines() if "met by" in line or "missed by" in line)
    assert "missed by 7b `tpu` train on v4-8" in fits
    assert products.count("missed") == 0
    assert "met by 0 of 10; missed by 7b `tpu` decode on v5e-16" in traffic
