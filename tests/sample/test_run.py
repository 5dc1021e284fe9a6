import csv
import json
import threading
from collections import Counter

import ase.io
import jax
import pytest
from pymatgen.core import Composition, Structure

from crystal_jax import sharding
from crystal_jax.checkpoint.workdir import best_step
from crystal_jax.config import MeshConfig
from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry.oxidation import load_oxidation_table
from crystal_jax.evaluate.chemistry.validity import (
    compositional_invalid_reason,
    implausible_reason,
    structural_invalid_reason,
)
from crystal_jax.sample.engine import decode_threads, engine, scheduler
from crystal_jax.sample.requests import read_requests
from crystal_jax.sample.run import sample
from crystal_jax.sample.samples_file import SamplesFile
from crystal_jax.structures import parse, read_entries
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.train.run import train
from tests.experiments import training_config


@pytest.fixture(scope="module")
def samples(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("samples") / "out"
    sample(trained, output=output, num_samples=20, batch_size=8, seed=3)
    return output


def rows_of(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def test_files_agree(samples):
    rows = rows_of(samples)
    assert [row["index"] for row in rows] == list(range(20))
    with (samples / "samples.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    columns = ["gen_str", "cif", "model_name", "formula", "request_number", "request_name", "requested"]
    assert list(table[0]) == columns
    assert {(line["request_number"], line["requested"]) for line in table} == {("0", "")}
    assert [line["gen_str"] for line in table] == [row["prompt"] + row["text"] for row in rows]
    with_cell = [line["cif"] for line in table if line["cif"]]
    assert len(list((samples / "cif").glob("*.cif"))) == len(with_cell)
    assert 0 < len(with_cell) <= 20
    assert all(Composition(line["formula"]).num_atoms >= 1 for line in table)
    for cif in with_cell[:3]:
        assert len(Structure.from_str(cif, fmt="cif")) >= 1
    run = json.loads((samples / "run.json").read_text())
    assert run["request"]["seed"] == 3
    assert run["provenance"]["versions"]["jax"]


def test_a_stopped_job_goes_on_and_gives_the_same_samples(trained, samples, tmp_path):
    output = tmp_path / "out"
    sample(trained, output=output, num_samples=8, batch_size=8, seed=3)
    with (output / "samples.jsonl").open("a") as file:
        file.write('{"index": 8, "te')  # the machine went down while a line was written
    sample(trained, output=output, num_samples=20, batch_size=4, seed=3)
    assert [row["text"] for row in rows_of(output)] == [row["text"] for row in rows_of(samples)]


@pytest.fixture
def two_threads(monkeypatch):
    """Of four rows each, on one device; the names of those that began."""
    one_device = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda sizes: one_device)
    monkeypatch.setattr(decode_threads, "SLOTS_PER_THREAD", 4)
    monkeypatch.setattr(engine, "available_workers", lambda: 2)
    begin, began = scheduler.Scheduler.run, set()

    def noted(*args):
        began.add(threading.current_thread().name)
        return begin(*args)

    monkeypatch.setattr(scheduler.Scheduler, "run", noted)
    return began


def test_decode_threads_give_the_same_samples(trained, samples, tmp_path, two_threads):
    sample(trained, output=tmp_path / "out", num_samples=20, batch_size=8, seed=3)
    assert [row["text"] for row in rows_of(tmp_path / "out")] == [row["text"] for row in rows_of(samples)]
    assert two_threads == {"decode 0", "decode 1"}


def test_a_full_disk_ends_all_threads(trained, samples, tmp_path, two_threads, monkeypatch):
    append, written = SamplesFile.append, []

    def full(self, rows):
        if len(written) == 2:
            raise OSError("No space left on device")
        written.append(rows)
        append(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(SamplesFile, "append", full)
        with pytest.raises(OSError, match="No space") as error:
            sample(trained, output=tmp_path / "out", num_samples=20, batch_size=8, seed=3)
    assert error.tb  # its frames are alive, and what they hold
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode ")]
    assert len(rows_of(tmp_path / "out")) == 2
    sample(trained, output=tmp_path / "out", num_samples=20, batch_size=8, seed=3)
    assert [row["text"] for row in rows_of(tmp_path / "out")] == [row["text"] for row in rows_of(samples)]


def test_another_request_may_not_overwrite(trained, samples):
    before = (samples / "samples.jsonl").read_bytes()
    with pytest.raises(UserError, match="holds samples of another request \\(other temperature\\)"):
        sample(trained, output=samples, num_samples=20, temperature=0.7, seed=3)
    assert (samples / "samples.jsonl").read_bytes() == before


def test_a_requested_formula_stands_in_the_prompt_and_elements_are_kept(trained, tmp_path):
    sample(
        trained,
        output=tmp_path / "out",
        num_samples=4,
        batch_size=4,
        conditions={"pretty_formula": "LiFePO4", "spacegroup.number": 62},
        elements=["Li", "Fe", "P", "O"],
        max_atoms=6,
        hints_only=True,
    )
    for row in rows_of(tmp_path / "out"):
        assert "The chemical formula is LiFePO4. The spacegroup number is 62. " in row["prompt"]
        symbols = row["text"].split("\n")[2::2]
        assert set(symbols) <= {"Li", "Fe", "P", "O"}
        assert len(symbols) <= 6
    request = json.loads((tmp_path / "out/run.json").read_text())["request"]
    assert request["hints"] == ["pretty_formula", "spacegroup.number"]
    assert request["limits"] == {"elements": ["Li", "Fe", "P", "O"], "max_atoms": 6}


def test_a_requested_formula_is_kept_to_by_default(trained, tmp_path):
    sample(trained, output=tmp_path / "out", num_samples=8, conditions={"pretty_formula": "SrTiO3"}, max_atoms=10)
    for row in rows_of(tmp_path / "out"):
        assert Composition(Counter(row["text"].split("\n")[2::2])).reduced_formula == "SrTiO3"
    request = json.loads((tmp_path / "out/run.json").read_text())["request"]
    assert (request["hints"], request["limits"]["formula"]) == ([], "the requested one")
    with pytest.raises(UserError, match=r"no multiple of LiFePO4 \(7 atoms\) has 1 to 6 atoms"):
        sample(trained, output=tmp_path / "o", conditions={"pretty_formula": "LiFePO4"}, max_atoms=6)


@pytest.mark.parametrize("plain", [True, False])
def test_a_chemical_system_is_exact(request, plain, tmp_path):
    """All of its elements and no others, whether the text begins with the composition or not."""
    model = request.getfixturevalue("trained" if plain else "stating")
    for number, limits in enumerate(
        [
            {"chemical_system": "Li-P-S", "max_atoms": 5},
            {"elements": ["Li", "P", "S", "O"], "min_elements": 2, "max_elements": 3, "max_atoms": 4},
        ]
    ):
        sample(model, output=tmp_path / str(number), num_samples=12, **limits)
        for row in rows_of(tmp_path / str(number)):
            symbols = set(row["text"].split("\n")[2 if plain else 3 :: 2])
            assert row["status"] == "complete"
            assert row["request"] == ({"chemical_system": ["Li", "P", "S"]} if number == 0 else {})
            assert symbols == {"Li", "P", "S"} if number == 0 else 2 <= len(symbols & {"Li", "P", "S", "O"}) <= 3


@pytest.mark.parametrize("plain", [True, False])
def test_a_hint_alone_gets_a_formula_of_the_models_own(request, plain, tmp_path):
    """The formula is drawn as without any request, under the limits; then both are asked for."""
    model = request.getfixturevalue("trained" if plain else "stating")
    options = dict(num_samples=10, elements=["Na", "K", "Cl", "F"], max_atoms=4, seed=1)
    sample(model, output=tmp_path / "hint", conditions={"spacegroup.number": "Fm-3m"}, **options)
    for row in rows_of(tmp_path / "hint"):
        counts = Counter(row["text"].split("\n")[2 if plain else 3 :: 2])
        formula = Composition(counts).reduced_formula
        assert f"The chemical formula is {formula}. The spacegroup number is 225. " in row["prompt"]
        assert set(counts) <= {"Na", "K", "Cl", "F"}
        assert row["request"]["spacegroup.number"] == 225
    again = sample(model, output=tmp_path / "few", conditions={"spacegroup.number": 225}, batch_size=4, **options)
    texts = [[row["text"] for row in rows_of(folder)] for folder in (tmp_path / "hint", again.parent)]
    assert texts[0] == texts[1]


def test_requests_have_numbers_and_names(trained, tmp_path):
    file = tmp_path / "requests.csv"
    file.write_text("name,pretty_formula\nfirst,NaCl\nsecond,KF\n")
    path = sample(trained, output=tmp_path / "out", num_samples=2, conditions=read_requests(file), max_atoms=2)
    with path.open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [line["request_number"] for line in table] == ["0", "1", "0", "1"]
    assert [line["request_name"] for line in table] == ["first", "second", "first", "second"]
    assert [json.loads(line["requested"])["pretty_formula"] for line in table] == ["NaCl", "KF"] * 2
    assert [(row["request_number"], row["request_name"]) for row in rows_of(tmp_path / "out")][:2] == [
        (0, "first"),
        (1, "second"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0 or more, not -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number from 1 to"),
        ({"elements": ["Xx"]}, "elements: there is no element 'Xx'"),
        ({"elements": ["li", "p"]}, "elements: 'li' is no element; did you mean Li,P?"),
        ({"chemical_system": "li-p-s"}, "did you mean Li-P-S?"),
        ({"chemical_system": "Li-P", "elements": ["Li", "O"]}, "chemical_system Li-P has P, which the other limits"),
        ({"chemical_system": "Li-P-S", "max_atoms": 2}, "3 elements need more atoms than max_atoms=2"),
        ({"min_elements": 3, "max_elements": 2}, "min_elements=3 must be at least 1 and at most max_elements=2"),
        ({"max_atoms": 0}, "max_atoms=0 must be a whole number from 1 to 500"),
        ({"max_atoms": 99_999}, "max_atoms=99999 must be a whole number from 1 to 500"),
        ({"num_samples": 10**20}, "num_samples=1000.* must be a whole number"),
        ({"conditions": {"pretty_formula": "LiFoo2"}}, "'LiFoo2' is not a chemical formula: there is no element 'Foo'"),
        ({"conditions": {"spacegroup.number": "Pnmaa"}}, "no space group 'Pnmaa': .* did you mean Pnma?"),
        ({"conditions": {"e_above_hull": float("nan")}}, "e_above_hull: nan is not a finite number"),
        ({"elements": 5}, "the list=5 is no list of words"),
        ({"constraints": 5}, "constraints=5 is no list of words"),
        ({"conditions": ["band_gap"]}, "request 1 is 'band_gap'; a request is a mapping"),
        ({"conditions": {"colour": 1}}, "Unknown condition 'colour'"),
        ({"step": 5}, "no checkpoint of step 5; there are: "),
    ],
)
def test_bad_requests_are_one_clear_line_and_write_nothing(trained, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sample(trained, output=tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_no_workdir(tmp_path):
    with pytest.raises(UserError, match="is no training workdir"):
        sample(tmp_path, output=tmp_path / "out")


def test_a_model_with_adapters_samples_with_its_base(trained, dataset, tmp_path):
    config = training_config(str(dataset), lora={"rank": 2}, base=str(trained), train={"num_steps": 1})
    train(config, workdir=tmp_path / "lora")
    sample(tmp_path / "lora", output=tmp_path / "out", num_samples=4, batch_size=4, max_atoms=2)
    assert len(rows_of(tmp_path / "out")) == 4


def test_requests_have_limits_of_their_own(trained, tmp_path):
    """Which add to those of the job, whichever way they come."""
    file = tmp_path / "wishes.csv"
    file.write_text(
        "e_above_hull,elements,without,min_atoms,max_atoms,constraints\n"
        "0.0,\"['Na', 'Cl', 'Xe']\",,,,charge\n"
        ",Fe O,,3,3,\n"
        ",,O Xe,,9,charge distance\n"
    )
    asked = read_requests(file)
    assert asked[1:] == [
        {"elements": ("Fe", "O"), "min_atoms": 3, "max_atoms": 3},
        {"exclude_elements": ("O", "Xe"), "max_atoms": 9, "constraints": ["charge", "distance"]},
    ]
    options = dict(num_samples=4, exclude_elements=["Xe"], max_atoms=4, constraints=())
    path = sample(trained, output=tmp_path / "out", conditions=asked, **options)
    rows, table = rows_of(tmp_path / "out"), load_oxidation_table()
    with path.open(newline="") as csv_file:
        crystals = [Composition(line["formula"]) for line in csv.DictReader(csv_file)]
    for row, crystal in zip(rows, crystals, strict=True):
        number, symbols = row["index"] % 3, set(crystal.get_el_amt_dict())
        assert row["request"] == json.loads(json.dumps(asked[number]))
        assert ("energy above the convex hull is 0.0" in row["prompt"]) == (number == 0)
        assert row["constraints"] == [["charge"], [], ["charge", "distance"]][number]
        assert symbols <= [{"Na", "Cl"}, {"Fe", "O"}, set(ELEMENTS) - {"O", "Xe"}][number]
        assert crystal.num_atoms == 3 if number == 1 else crystal.num_atoms <= 4
        if number != 1:
            assert compositional_invalid_reason(crystal, table) is None
    with pytest.raises(UserError, match=r"another request \(other limits"):
        sample(trained, output=tmp_path / "out", conditions=[*asked[:2], {}], exclude_elements=["Xe"], max_atoms=4)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"elements": ["Xx"]}, "request 2: elements: there is no element 'Xx'"),
        ({"elements": ["O"]}, "request 2: A crystal needs at least one allowed element"),
        ({"min_atoms": 5}, "request 2: min_atoms=5 must be at least 1 and at most max_atoms=4"),
        ({"constraints": ["lattice"]}, "request 2: the constraint 'lattice' needs a requested space group"),
        ({"colour": "red"}, "Unknown condition 'colour'"),
    ],
)
def test_an_impossible_request_is_named_by_its_number(trained, tmp_path, second, message):
    with pytest.raises(UserError, match=message):
        sample(trained, output=tmp_path / "out", conditions=[{}, second], exclude_elements=["O"], max_atoms=4)
    assert not (tmp_path / "out").exists()


def test_rules_by_name(trained, tmp_path):
    path = sample(trained, output=tmp_path / "out", num_samples=12, constraints=["charge", "distance"], max_atoms=4)
    table = load_oxidation_table()
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            assert structural_invalid_reason(Structure.from_str(line["cif"], fmt="cif")) is None
            assert compositional_invalid_reason(Composition(line["formula"]), table) is None
    for row in rows_of(tmp_path / "out"):
        assert row["constraints"] == ["charge", "distance"]
        assert row["status"] == "complete"
        assert sum(row["token_log_probs"]) == pytest.approx(row["log_prob"], abs=0.01)


def test_samples_keep_their_distance_by_default(trained, tmp_path):
    """And what the model writes by itself can be asked for."""
    options = dict(num_samples=12, max_atoms=4, seed=2)
    paths = {name: tmp_path / name for name in ("default", "none")}
    sample(trained, output=paths["default"], **options)
    sample(trained, output=paths["none"], constraints="none", **options)
    reasons = {}
    for name, path in paths.items():
        cifs = [entry for entry in read_entries(path / "samples.csv") if entry.cif]
        reasons[name] = [implausible_reason(parse(entry).structure) for entry in cifs]
    assert reasons["default"] == [None] * 12
    assert any(reasons["none"])
    assert {tuple(row["constraints"]) for row in rows_of(paths["default"])} == {("distance",)}
    assert {tuple(row["constraints"]) for row in rows_of(paths["none"])} == {()}


def test_redraws_that_cannot_be(trained, tmp_path):
    with pytest.raises(UserError, match="max_retries=-1 must be a whole number from 0"):
        sample(trained, output=tmp_path / "out", num_samples=1, max_retries=-1)
    assert not (tmp_path / "out").exists()


def test_a_cache_in_8_bits_is_another_request(trained, tmp_path):
    sample(trained, output=tmp_path / "out", num_samples=2, max_atoms=2, kv_cache="int8")
    with pytest.raises(UserError, match=r"another request \(other kv_cache\)"):
        sample(trained, output=tmp_path / "out", num_samples=2, max_atoms=2)


def test_the_best_checkpoint(trained, tmp_path):
    sample(trained, output=tmp_path / "out", num_samples=2, step="best", max_atoms=2)
    assert json.loads((tmp_path / "out/run.json").read_text())["request"]["step"] == best_step(trained)


def test_several_temperatures_are_one_job(trained, tmp_path):
    output = tmp_path / "out"
    assert sample(trained, output=output, num_samples=4, temperature=[0.5, 1.0], max_atoms=2, extxyz=True) == output
    alone = sample(trained, output=tmp_path / "alone", num_samples=4, temperature=0.5, max_atoms=2)
    folders = sorted(path.name for path in output.iterdir())
    assert folders == ["temperature=0.5,top_p=1.0", "temperature=1.0,top_p=1.0"]
    assert (output / folders[0] / "samples.csv").read_text() == alone.read_text()
    with_cell = len(list((output / folders[1] / "cif").glob("*.cif")))
    frames = ase.io.read(output / folders[1] / "samples.extxyz", index=":")
    assert len(frames) == with_cell
    assert all(frame.pbc.all() for frame in frames)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constraints": ["formula"]}, "'formula' needs a requested formula"),
        ({"constraints": ["lattice"]}, "'lattice' needs a requested space group"),
        ({"constraints": ["beauty"]}, "unknown constraints beauty; there are: formula, charge, distance, "),
        ({"constraints": ["distance"], "min_distance": -1.0}, "min_distance=-1.0 must be finite and not negative"),
        (
            {"constraints": ["formula", "charge"], "conditions": {"pretty_formula": "Na2Cl"}},
            "the charges of Na2Cl cannot balance",
        ),
        ({"mesh": "3,3"}, "mesh '3,3' is not written like"),
    ],
)
def test_bad_rules(trained, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sample(trained, output=tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
