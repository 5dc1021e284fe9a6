import csv
import json
import math

import jax
import numpy as np
import pytest
from flax import nnx
from pymatgen.core import Lattice, Structure

from crystal_jax.checkpoint.models import load_trained
from crystal_jax.cli import main
from crystal_jax.config import MeshConfig, TaskConfig
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import open_split
from crystal_jax.errors import UserError
from crystal_jax.score.config import ScoreConfig
from crystal_jax.score.run import score
from crystal_jax.score.scores import increase_under_translation, perplexity
from crystal_jax.sharding import make_mesh
from crystal_jax.text.tokenizer import load_tokenizer
from crystal_jax.train.step import loss_sum


def write_table(path, cifs):
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "cif"])
        table.writerows(cifs)
    return path


@pytest.fixture(scope="module")
def records(dataset):
    return list(open_split(dataset, "train"))[:4]


@pytest.fixture(scope="module")
def crystals(records, tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("crystals") / "c.csv", [(f"c{i}", r.cif) for i, r in enumerate(records)])


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def scores(trained, crystals, tmp_path_factory):
    output = tmp_path_factory.mktemp("scores") / "out"
    return rows_of(score(trained, samples=crystals, output=output, translations=3, batch_size=8, seed=5))


def test_a_score_is_the_training_loss_of_the_same_text(trained, records, scores):
    model = load_trained(trained, make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1)))
    task = TaskConfig(infill=0.0, conditions=False, translate=False, order="stored", loss="completion")
    maker = ExampleMaker(load_tokenizer("atom_coordinate"), model.experiment.text, task)
    loss = jax.jit(lambda params, batch: loss_sum(nnx.merge(model.graph, params), batch))
    for record, row in zip(records, scores, strict=True):
        example = maker(record, np.random.default_rng(0))
        batch = {name: values[None] for name, values in example.items()}
        batch |= {"positions": np.arange(len(example["tokens"]))[None], "segments": np.ones_like(batch["tokens"])}
        total, count = loss(model.params, batch)
        assert row["tokens"] == count
        assert row["log_prob"] == pytest.approx(-float(total), abs=1e-4)
        assert row["log_prob_per_token"] == pytest.approx(-float(total / count), abs=1e-4)


def test_settings_may_come_in_one_object_and_run_json_has_the_keys_of_earlier_versions(trained, crystals, tmp_path):
    """A folder of an earlier version goes on only if its request is the same."""
    config = ScoreConfig(checkpoint=trained, samples=crystals, output=tmp_path / "out", translations=0)
    assert len(rows_of(score(config))) == 4
    request = json.loads((tmp_path / "out/run.json").read_text())["request"]
    assert list(request) == [
        *("checkpoint", "step", "samples", "samples_sha256", "prompt", "translations", "seed"),
        *("text_format", "coordinates", "order", "tokenizer"),
    ]
    with pytest.raises(TypeError, match="translation"):
        score(trained, samples=crystals, output=tmp_path / "out", translation=3)


def test_rows_hold_together(scores):
    assert [row["name"] for row in scores] == ["c0", "c1", "c2", "c3"]
    for row in scores:
        assert row["reason"] is None
        assert row["perplexity"] == pytest.approx(math.exp(-row["log_prob"] / row["tokens"]))
        assert len(row["translations"]) == 3
        ppl = [each["perplexity"] for each in row["translations"]]
        assert row["ipt"] == pytest.approx(sum(p - min(ppl) for p in ppl) / 3)
        assert row["ipt"] > 0
    shifts = [tuple(each["shift"]) for row in scores for each in row["translations"]]
    assert len(set(shifts)) == 12


def test_ipt_of_a_table_by_hand():
    # Cross-entropies of 2, 4 and 6 bits over two tokens: perplexities 2, 4, 8.
    ppl = [perplexity(-bits * math.log(2), 2) for bits in (2, 4, 6)]
    assert ppl == pytest.approx([2, 4, 8])
    assert increase_under_translation(ppl) == pytest.approx((0 + 2 + 6) / 3)
    assert increase_under_translation([3.0, 3.0]) == 0


def test_a_stopped_job_goes_on_and_gives_the_same_scores(trained, crystals, scores, tmp_path):
    path = score(trained, samples=crystals, output=tmp_path / "out", translations=3, batch_size=8, seed=5)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])  # the machine went down while a line was written
    again = rows_of(score(trained, samples=crystals, output=tmp_path / "out", translations=3, batch_size=8, seed=5))
    assert [row["text"] for row in again] == [row["text"] for row in scores]
    assert [row["translations"][2]["shift"] for row in again] == [row["translations"][2]["shift"] for row in scores]
    np.testing.assert_allclose([row["ipt"] for row in again], [row["ipt"] for row in scores], rtol=1e-4)
    with pytest.raises(UserError, match=r"holds the output of another request \(other seed\)"):
        score(trained, samples=crystals, output=tmp_path / "out", translations=3, seed=6)


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
def test_what_cannot_be_scored_keeps_its_row(trained, records, tmp_path, capsys):
    cubic = Lattice.cubic(4)
    cifs = {
        "good": records[0].cif,
        "unreadable": "data_nothing",
        "disordered": Structure(cubic, [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]).to(fmt="cif"),
        "too long": Structure(Lattice.orthorhombic(4, 5, 70), ["Fe"], [[0, 0, 0]]).to(fmt="cif"),
        "beyond": Structure(cubic, ["Rf"], [[0, 0, 0]]).to(fmt="cif"),
        "none": "",
    }
    table = write_table(tmp_path / "c.csv", cifs.items())
    arguments = [f"--checkpoint={trained}", f"--samples={table}", f"--output={tmp_path / 'out'}", "--translations=0"]
    assert main(["score", *arguments]) == 0
    assert "1 of 6 crystals scored; mean perplexity" in capsys.readouterr().out
    good, *others = rows_of(tmp_path / "out/scores.jsonl")
    assert good["ipt"] is None
    assert good["translations"] == []
    expected = ("does not parse", "disordered", "'70.0' is not in the vocabulary", "not an element symbol", "no CIF")
    for row, name, reason in zip(others, list(cifs)[1:], expected, strict=True):
        assert row.keys() == {"index", "name", "reason"}
        assert row["name"] == name
        assert reason in row["reason"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"translations": -1}, "translations=-1 must not be negative"),
        ({"batch_size": 0}, "batch_size=0 be positive"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"step": 5}, "no checkpoint of step 5"),
        ({"samples": "{tmp}/none.csv"}, "none.csv: no such file or folder"),
        ({"samples": "{tmp}/bare"}, "holds no crystal files"),
        ({"samples": "{tmp}/x.csv"}, "no column 'cif'"),
        ({"samples": "{tmp}/x.txt"}, "crystals are read from a .csv"),
        ({"samples": "{tmp}/ragged.csv"}, "row 1 has more cells than the header has columns"),
        ({"samples": "{tmp}/header.csv"}, "a header but no rows"),
        ({"samples": "{tmp}/empty.csv"}, "empty.csv: the file is empty"),
    ],
)
def test_bad_requests_are_one_clear_line_and_write_nothing(trained, crystals, tmp_path, changes, message):
    (tmp_path / "bare").mkdir()
    (tmp_path / "x.csv").write_text("name,text\na,b\n")
    (tmp_path / "header.csv").write_text("name,cif\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("name,cif\na,b,\n")
    (tmp_path / "x.txt").write_text("no crystal")
    samples = type(tmp_path)(str(changes.pop("samples", crystals)).format(tmp=tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        score(trained, samples=samples, output=tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
