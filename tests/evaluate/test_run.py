import json
import math
import subprocess
import sys

import pandas as pd
import pytest
from pymatgen.core import Structure

from crystal_jax import cli
from crystal_jax.data import mp20
from crystal_jax.errors import UserError
from crystal_jax.evaluate.columns import COLUMNS
from crystal_jax.evaluate.metrics import rates as metrics_module
from crystal_jax.evaluate.run import evaluate


def cif(structure: Structure) -> str:
    return structure.to(fmt="cif")


@pytest.fixture
def samples(tmp_path, salt, cesium_chloride):
    """Salt twice, CsCl, salt squeezed together, an implausible compound, and one that did not parse."""
    squeezed = salt.copy()
    squeezed.scale_lattice(0.2)
    implausible = cesium_chloride.copy()
    implausible.replace_species({"Cs": "Al", "Cl": "B"})
    texts = [cif(s) for s in (salt, salt, cesium_chloride, squeezed, implausible)] + [""]
    path = tmp_path / "samples.csv"
    pd.DataFrame({"gen_str": "…", "cif": texts, "model_name": "tiny"}).to_csv(path, index=False)
    return path


@pytest.fixture
def reference(tmp_path, salt, cesium_chloride):
    folder = tmp_path / "reference"
    folder.mkdir()
    (folder / "salt.cif").write_text(cif(salt))
    (folder / "cscl.cif").write_text(cif(cesium_chloride))
    return folder


def measure(*arguments, **settings):
    return evaluate(*arguments, **settings).metrics


def rate(metrics, name):
    return metrics[name]["hits"], metrics[name]["total"]


def finite_numbers(value) -> int:
    """Counts the numbers of a JSON document; fails on one that is not finite."""
    if isinstance(value, dict | list):
        return sum(map(finite_numbers, value.values() if isinstance(value, dict) else value))
    if isinstance(value, float | int) and not isinstance(value, bool):
        assert math.isfinite(value)
        return 1
    return 0


def test_rates_count_failures(samples, reference, tmp_path, salt):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "salt.cif").write_text(cif(salt))
    out = tmp_path / "out"
    metrics = measure(
        samples, output=out, reference=str(reference), train_reference=str(tmp_path / "train"), progress=False
    )
    assert rate(metrics, "structural_validity") == (4, 6)
    assert rate(metrics, "compositional_validity") == (4, 6)
    assert rate(metrics, "validity") == (3, 6)
    assert rate(metrics, "uniqueness") == (2, 3)
    assert rate(metrics, "novelty") == (1, 3)
    assert metrics["failures"] == {
        "two atoms closer than 0.5 Å": 1,
        "no oxidation states balance": 1,
        "no CIF": 1,
    }
    assert metrics["samples"] == {
        "path": str(samples),
        "read": 6,
        "without_structure": 1,
        "judged": 6,
        "models": ["tiny"],
    }
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert finite_numbers(metrics) > 30


def test_distances_are_of_valid_samples_against_all_of_the_reference(
    samples, reference, tmp_path, salt, cesium_chloride
):
    metrics = measure(samples, output=tmp_path / "out", reference=str(reference), progress=False)
    # Two of three valid samples are salt, half of the reference is: a sixth of the mass moves.
    expected = abs(salt.density - cesium_chloride.density) / 6
    found = metrics["wasserstein_density"]
    assert found["value"] == pytest.approx(expected, rel=1e-5)
    assert (found["unit"], found["samples"], found["reference"]) == ("g/cm^3", 3, 2)
    assert metrics["wasserstein_num_elements"]["value"] == 0
    assert metrics["histograms"]["num_atoms"]["samples"][-1] == 2  # 8 atoms
    assert metrics["novelty"] is None


def test_coverage_counts_failures_in_its_denominators(samples, reference, tmp_path):
    metrics = measure(samples, output=tmp_path / "out", reference=str(reference), progress=False)
    assert rate(metrics, "coverage_recall") == (2, 2)
    assert rate(metrics, "coverage_precision") == (3, 6)
    assert metrics["amsd_recall"]["value"] == pytest.approx(0, abs=1e-6)
    assert metrics["structure_diversity"]["crystals"] == 3
    assert metrics["settings"]["coverage_cutoffs"] == {"structure": 0.4, "composition": 10.0}
    assert "fingerprint_novelty" not in metrics
    rows = pd.read_csv(tmp_path / "out" / "structures.csv", dtype=COLUMNS)
    assert rows["covered"][:3].tolist() == [True] * 3
    assert rows["covered"].isna().tolist() == [False] * 5 + [True]  # whatever has a structure is judged, as in CDVAE
    assert rows["structure_distance"][:3].tolist() == pytest.approx([0] * 3, abs=1e-6)


def test_novelty_by_fingerprint(samples, reference, tmp_path, salt):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "salt.cif").write_text(cif(salt))
    metrics = measure(
        samples,
        output=tmp_path / "out",
        reference=str(reference),
        train_reference=str(tmp_path / "train"),
        fingerprints="all",
        progress=False,
    )
    for name in ("structure_novelty", "composition_novelty", "fingerprint_novelty"):
        assert rate(metrics, name) == (1, 3), name  # CsCl
    rows = pd.read_csv(tmp_path / "out" / "structures.csv", dtype=COLUMNS)
    assert rows["novel_by_fingerprint"][:3].tolist() == [False, False, True]


def test_paper_mode_covers_valid_crystals_by_valid_crystals(samples, tmp_path):
    """The samples as their own reference, of which three are valid, two of these alike."""
    metrics = measure(samples, output=tmp_path / "out", reference=str(samples), mode="paper", progress=False)
    assert rate(metrics, "coverage_recall") == (3, 3)
    assert rate(metrics, "coverage_precision") == (3, 3)
    default = measure(samples, output=tmp_path / "out", reference=str(samples), progress=False)
    assert rate(default, "coverage_recall") == (4, 4)  # AlB, which is not valid, covers itself, as in CDVAE
    assert default["reference_without_fingerprint"] == 2  # too dense; no CIF
    assert rate(default, "coverage_precision") == (4, 6)


def test_in_paper_mode_a_sample_without_fingerprint_is_not_valid(samples, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "crystal_jax.evaluate.fingerprints.coordination.MAX_POINTS", 60
    )  # there are 81 in salt, 51 in CsCl
    for mode, valid in (("paper", (1, 5)), ("default", (3, 6))):
        metrics = measure(samples, output=tmp_path / "out", reference=str(reference), mode=mode, progress=False)
        assert rate(metrics, "validity") == valid
        assert metrics["failures"].get("no fingerprint", 0) == 2 * (mode == "paper")


def test_nearest_known_crystals_have_names(samples, reference, tmp_path):
    evaluate(samples, output=tmp_path / "out", reference=str(reference), progress=False)
    rows = pd.read_csv(tmp_path / "out" / "structures.csv", dtype=COLUMNS)
    assert rows["nearest_known"][:3].tolist() == ["NaCl (salt)", "NaCl (salt)", "CsCl (cscl)"]


def test_predictions_conditions_and_scores(samples, reference, tmp_path):
    table = pd.read_csv(samples, keep_default_na=False)
    table["gen_str"] = "The chemical formula is NaCl. Generate"
    table.head(2).to_csv(samples, index=False)
    line = {"index": 0, "reason": None, "perplexity": 2.0, "ipt": None, "translations": []}
    (tmp_path / "scores.jsonl").write_text(json.dumps(line) + "\n")
    metrics = measure(
        samples,
        output=tmp_path / "out",
        targets=str(reference),
        scores=tmp_path / "scores.jsonl",
        progress=False,
    )
    assert rate(metrics, "formula_match") == (2, 2)
    assert rate(metrics, "match_rate") == (1, 2)  # the folder's first is CsCl
    assert metrics["perplexity"]["scored"] == 1
    rows = pd.read_csv(tmp_path / "out" / "structures.csv", dtype=COLUMNS)
    assert rows["formula_match"].tolist() == [True, True]
    assert rows["perplexity"][0] == 2.0


def test_one_row_a_sample(samples, tmp_path, salt):
    evaluate(samples, output=tmp_path / "out", progress=False)
    rows = pd.read_csv(tmp_path / "out" / "structures.csv", dtype=COLUMNS)
    assert list(rows.columns) == list(COLUMNS)
    assert rows["name"].tolist() == [f"{i:06d}" for i in range(6)]
    assert rows["valid"].tolist() == [True, True, True, False, False, False]
    assert rows["unique"][:3].tolist() == [True, False, True]
    assert rows["unique"][3:].isna().all()
    assert rows["spacegroup"][:3].tolist() == [225, 225, 221]
    first = rows.iloc[0]
    assert (first["formula"], first["reduced_formula"], first["num_atoms"]) == ("Na4 Cl4", "NaCl", 8)
    assert first["density"] == pytest.approx(salt.density, rel=1e-6)
    assert first["volume"] == pytest.approx(5.64**3, rel=1e-6)
    assert rows["failure_reason"][5] == "no CIF: the sample forms no cell"


def test_paper_mode_leaves_unparsable_samples_out(samples, tmp_path):
    metrics = measure(samples, output=tmp_path / "out", mode="paper", progress=False)
    assert rate(metrics, "validity") == (3, 5)
    assert metrics["samples"]["judged"] == 5
    assert metrics["settings"]["electronegativity_zr"] == 0.33


def test_paper_mode_draws_from_too_many(monkeypatch, samples, tmp_path):
    monkeypatch.setattr(metrics_module, "PAPER_NUM_SAMPLES", 4)
    metrics = measure(samples, output=tmp_path / "out", mode="paper", progress=False)
    assert metrics["validity"]["total"] == 4
    assert metrics["uniqueness"]["total"] == 3


def test_nothing_valid(tmp_path, reference):
    path = tmp_path / "samples.csv"
    path.write_text("cif\n?\n?\n")
    metrics = measure(path, output=tmp_path / "out", reference=str(reference), progress=False)
    assert rate(metrics, "validity") == (0, 2)
    assert metrics["uniqueness"] == {"value": None, "hits": 0, "total": 0}
    assert metrics["wasserstein_density"]["value"] is None
    assert finite_numbers(metrics) > 0


def test_prepared_data_as_reference(samples, tmp_path, monkeypatch, salt):
    asked = []

    class Record:
        cif, formula, material_id = cif(salt), "NaCl", "mp-22862"

    monkeypatch.setattr(mp20, "open_split", lambda directory, split: asked.append((directory, split)) or [Record])
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "dataset_info.json").write_text("{}")
    metrics = measure(
        samples,
        output=tmp_path / "out",
        reference=f"{tmp_path / 'set'}:validation",
        train_reference=str(tmp_path / "set"),
        progress=False,
    )
    assert asked == [(tmp_path / "set", "validation"), (tmp_path / "set", "train")]
    assert metrics["wasserstein_density"]["reference"] == 1
    assert rate(metrics, "novelty") == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "strict"}, "no mode 'strict'; --mode is one of default, paper"),
        ({"oxidation_states": "wiki"}, "no oxidation states 'wiki'"),
        ({"fingerprints": "some"}, "no fingerprints of 'some'; --fingerprints is one of none, reference, all"),
        ({"coverage_cutoffs": "qm9"}, "no cut-offs of 'qm9'; --coverage_cutoffs is one of mp20, perov5, carbon24"),
        ({"reference": "nowhere"}, "nowhere: no such reference"),
        ({"train_reference": "nowhere:train"}, "nowhere:train: no such reference"),
    ],
)
def test_bad_options(samples, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate(samples, output=tmp_path / "out", progress=False, **arguments)
    assert not (tmp_path / "out").exists()


def test_command_line(samples, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    assert cli.main(["evaluate", f"--samples={samples}", f"--output={out}", "--noprogress"]) == 0
    assert "validity                   50.00 %   3 of 6" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names >= {"metrics.json", "structures.csv"}
    assert not any(name.startswith(".") for name in names)  # temporary files


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--samples=nowhere.csv", "--output=x"], 1, "nowhere.csv: no such file or folder of crystals"),
        (["--samples=nowhere.csv"], 2, "--output"),
        (["--samples=a.csv", "--output=x", "--mode=strict"], 2, "strict"),
        (["--samples={samples}", "--output={samples}/out", "--noprogress"], 1, "give another directory"),
    ],
)
def test_bad_command_lines_end_in_one_line(samples, capsys, arguments, status, message):
    assert cli.main(["evaluate", *(a.format(samples=samples) for a in arguments)]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_neither_jax_nor_torch_is_imported():
    code = (
        "import sys, crystal_jax.evaluate.run, crystal_jax.report.run; "
        "sys.exit(any(name in sys.modules for name in ('jax', 'torch', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
