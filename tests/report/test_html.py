import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax import cli
from crystal_jax.energy.relaxation.journal import key_of
from crystal_jax.errors import UserError
from crystal_jax.evaluate.evaluation import Evaluation, read_evaluation, write_evaluation
from crystal_jax.evaluate.run import evaluate
from crystal_jax.report.html import write_report
from crystal_jax.structures import parse, read_entries


class Page(HTMLParser):
    """Collects what a browser would fetch, and the page's text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += " " + " ".join(data.split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


@pytest.fixture
def evaluation(tmp_path):
    """Salt, an alloy, a crystal whose name tries to be HTML, and a sample that did not parse."""
    sodium = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    salt = Structure(Lattice.cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, [*sodium, *(sodium + 0.5)])
    alloy = Structure(Lattice.cubic(3.2), ["Cu", "Zn"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    table = {
        "name": ["a", "b", "<script>alert(1)</script>", "d"],
        "cif": [salt.to(fmt="cif"), alloy.to(fmt="cif"), alloy.scale_lattice(60).to(fmt="cif"), ""],
        "model_name": "<b>tiny</b>",
    }
    samples = tmp_path / "samples.csv"
    pd.DataFrame(table).to_csv(samples, index=False)
    evaluate(samples, output=tmp_path / "out", reference=str(samples), progress=False)
    return tmp_path / "out"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1, "val_loss": 1.5, "tokens_per_second": 7000}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "loss": NaN}\n')
    return path


def page(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_shows_rates_with_their_denominators(evaluation):
    text = page(write_report(evaluation)).text
    assert "75.0 %" in text
    assert "3 of 4" in text
    assert "2 of 3" in text  # unique: the alloy repeats itself, however scaled
    assert "not comparable one to one" in text
    assert "LLaMA-2 70B, τ = 0.7 (published) 99.6" in text


def test_other_evaluations_stand_beside_it(evaluation, tmp_path, capsys):
    path = write_report(evaluation, beside={"The same again": evaluation})
    rows = re.findall(r"(This evaluation|The same again)\s+75.0\s%\s3 of 4", page(path).text)
    assert rows == ["This evaluation", "The same again"]
    assert cli.main(["report", f"--evaluation={evaluation}", f"--compare=Before={evaluation}"]) == 0
    assert re.search(r"Before\s+75.0\s%\s3 of 4", page(path).text)
    assert cli.main(["report", f"--evaluation={evaluation}", "--compare=nameless"]) == 1
    assert "--compare=nameless is not written NAME=FOLDER" in capsys.readouterr().err


def test_shows_what_was_measured(evaluation):
    text = page(write_report(evaluation)).text
    for words in ("Recall", "Coverage precision", "Space groups", "Candidates", "LM-AC (published)", "ZnCu (b)"):
        assert words in text, words
    assert "not ranked: there are no energies; pass --energy_model=m3gnet" in text
    assert "is the nearest of 4 crystals of" in text
    assert text.index("Candidates") < text.index("Structure valid")  # candidates are what is seen first
    assert "have no symmetry (P1); of the reference crystals" in text
    assert "Energy above the hull" not in text
    assert "Metastable Stable (DFT)" in text  # the published table's head


def test_shows_stability(evaluation):
    found = read_evaluation(evaluation)
    rows, metrics = found.table, dict(found.metrics)
    rows["e_above_hull"] = [0.31, 0.02, float("nan"), float("nan")]
    rows["decomposes_to"] = ["1 NaCl", "0.5 Cu + 0.5 Zn", None, None]
    rows["known_in_system"], rows["stable_in_system"], rows["stable_missing"] = 1, 4, 3
    rows["lower_bound"] = [False, False, None, None]
    metrics["metastable"] = {"value": 0.25, "hits": 1, "total": 4}
    metrics["relaxation_status_counts"] = {"converged": 2}
    hull = {"source": "hull.csv", "materials": 7}
    metrics["settings"]["energies"] = {"model": "m3gnet", "fmax": 0.1, "max_steps": 500, "hull": hull}
    metrics["hull_coverage"] = {"2": {"systems": 2, "with_known_materials": 1}}
    metrics["command"] = "crystal-jax evaluate --samples=samples.csv"
    metrics["sampling"] = {"request": {"seed": 3, "temperature": 0.7, "constraints": ["charge"]}}
    write_evaluation(evaluation, Evaluation(metrics, rows))
    text = page(write_report(evaluation)).text
    assert "1; 1 of 4 stable" in text
    assert "Command crystal-jax evaluate --samples=samples.csv" in text
    for words in ("Sampling: seed 3", "temperature 0.7", "constraints charge", "largest force at the end (eV/Å) 0.1"):
        assert words in text, words
    assert "not ranked" not in text
    rows["lower_bound"] = [False, True, None, None]
    write_evaluation(evaluation, Evaluation(metrics, rows))
    text = page(write_report(evaluation)).text
    assert text.index("0.310") < text.index("≥ 0.020")  # a lower bound comes after what is known
    rows["lower_bound"] = [False, False, None, None]
    write_evaluation(evaluation, Evaluation(metrics, rows))
    text = page(write_report(evaluation)).text
    assert "Of 2 samples, relaxed with m3gnet" in text
    assert "knows materials in 1 of 2 systems of 2 elements" in text
    assert "0.5 Cu + 0.5 Zn" in text
    assert text.index("0.020") < text.index("0.310")  # the best first
    assert "and metastable" in text


def test_fetches_nothing(evaluation, log):
    document = page(write_report(evaluation, training_log=log))
    addresses = document.attributes("src") + document.attributes("href")
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", (evaluation / "report.html").read_text())


def test_user_text_is_escaped(evaluation):
    document = page(write_report(evaluation))
    assert sum(tag == "script" for tag, _ in document.tags) == 1
    assert "<b>tiny</b>" in document.text


def test_drawings_hold_the_atoms_of_the_cell_and_its_faces(evaluation):
    models = [json.loads(text) for text in page(write_report(evaluation)).attributes("data-model")]
    salt, alloy = models
    assert len(salt["atoms"]) == 27  # a 3 × 3 × 3 grid
    assert len(alloy["atoms"]) == 9  # eight corners and the centre
    assert [symbol for symbol, _, _ in salt["elements"]] == ["Cl", "Na"]
    assert len(salt["bonds"]) == 54  # the grid's neighbours
    assert alloy["bonds"] == []  # metals
    assert alloy["polyhedra"] == []
    # An octahedron of chlorine around each sodium, and none around chlorine.
    sodium = [symbol for symbol, _, _ in salt["elements"]].index("Na")
    assert [kind for kind, *_ in salt["polyhedra"]] == [sodium] * sum(atom[3] == sodium for atom in salt["atoms"])
    for _, corners, triangles, edges in salt["polyhedra"]:
        assert (len(corners), len(triangles), len(edges)) == (6, 8, 12)


def test_crystals_can_be_downloaded(evaluation):
    tags = page(write_report(evaluation)).tags
    links = {attributes["download"]: attributes["href"] for tag, attributes in tags if tag == "a"}
    assert set(links) == {"NaCl-a.cif", "ZnCu-b.cif"}
    assert "_cell_length_a" in links["NaCl-a.cif"]


def test_training_curve(evaluation, log):
    text = page(write_report(evaluation, training_log=log)).text
    assert "training loss, last 1.0000 at step 2" in text
    assert "median 7,000 tokens per second" in text
    assert "Training step" not in page(write_report(evaluation)).text


def test_without_the_samples_file_there_is_no_gallery(evaluation):
    (evaluation.parent / "samples.csv").unlink()
    document = page(write_report(evaluation))
    assert document.attributes("data-model") == []
    assert "no longer at its place" in document.text


def test_nothing_valid(tmp_path):
    (tmp_path / "samples.csv").write_text("cif\n?\n")
    evaluate(tmp_path / "samples.csv", output=tmp_path, progress=False)
    text = page(write_report(tmp_path)).text
    assert "0 of 1" in text
    assert "nothing to judge" in text
    assert "Nothing to show" in text


def test_command_line(evaluation, tmp_path, capsys):
    target = tmp_path / "pages" / "mine.html"
    assert cli.main(["report", f"--evaluation={evaluation}", f"--output={target}"]) == 0
    assert f"written: {target}" in capsys.readouterr().out
    assert target.read_text().startswith("<!DOCTYPE html>")


def test_not_an_evaluation(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.json; is this the --output"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("{")
    (tmp_path / "structures.csv").write_text("name\n")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        write_report(tmp_path)


def test_an_evaluation_of_another_version_is_one_line(evaluation):
    found = read_evaluation(evaluation)
    write_evaluation(evaluation, Evaluation({"validity": 1}, found.table))
    with pytest.raises(UserError, match=r"metrics\.json is damaged or of another version \(KeyError") as error:
        write_report(evaluation)
    assert "\n" not in str(error.value)


def test_the_relaxed_crystal_is_shown_with_the_generated_one_beside_it(evaluation):
    """Under the relaxed energy stands the crystal that has it."""
    found = read_evaluation(evaluation)
    rows = found.table
    relaxed = Structure(Lattice.cubic(5.0), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(fmt="cif")
    sample = parse(read_entries(evaluation.parent / "samples.csv")[0])
    (evaluation / "relaxations").mkdir()
    row = {"key": key_of(sample.cif), "status": "converged", "relaxed_cif": relaxed}
    (evaluation / "relaxations/host-1.jsonl").write_text(json.dumps(row) + "\n")
    rows.loc[0, ["relaxed_density", "relaxed_spacegroup", "relaxed_plausible", "energy_per_atom"]] = [
        0.78,
        221,
        True,
        -3.4,
    ]
    write_evaluation(evaluation, Evaluation(found.metrics, rows))
    document = page(write_report(evaluation))
    tags = [attributes for tag, attributes in document.tags if tag == "a"]
    links = {attributes["download"]: attributes["href"] for attributes in tags}
    assert "_cell_length_a%20%20%205.0" in links["NaCl-a.cif"]
    assert "_cell_length_a%20%20%205.64" in links["NaCl-a-generated.cif"]
    assert "generated: Fm-3m (225)" in document.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the training log"),
        ('{"step": 1, "loss": 2.0}\nnot JSON\n', "line 2: not a JSON object with a number 'step'"),
        ('{"loss": 2.0}\n', "line 1: "),
        ("[1]\n", "line 1: "),
        ('{"step": 1}\n', "no finite 'loss' or 'val_loss'"),
    ],
)
def test_bad_training_logs(evaluation, tmp_path, content, message):
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(evaluation, training_log=path)
