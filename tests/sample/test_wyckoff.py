"""Training on texts by symmetry, and sampling under their grammar, from the configuration to the CIF files."""

import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from crystal_jax.errors import UserError
from crystal_jax.evaluate.chemistry.validity import implausible_reason, structural_invalid_reason
from crystal_jax.sample.requests import FORMULA, SPACEGROUP
from crystal_jax.sample.run import sample
from crystal_jax.symmetry.operations import standard_operations
from crystal_jax.text.formats.wyckoff import WyckoffFormat
from tests.experiments import training_config

# Of pymatgen's own calls of spglib.
pytestmark = pytest.mark.filterwarnings("ignore:Set OLD_ERROR_HANDLING:DeprecationWarning")


@pytest.fixture(scope="module")
def symmetric(dataset, tmp_path_factory):
    """The workdir of a model of texts by symmetry, after a few steps on rock salts."""
    from crystal_jax.train.run import train

    workdir = tmp_path_factory.mktemp("symmetric") / "run"
    config = training_config(
        str(dataset),
        text={"version": "wyckoff"},
        tokenizer={"name": "wyckoff"},
        task={"infill": 0.2},
        train={"num_steps": 4, "eval_every": 4, "save_every": 4, "eval_num_samples": 3},
    )
    train(config, workdir=workdir)
    return workdir


def drawn(folder):
    with (folder / "samples.jsonl").open() as file:
        rows = [json.loads(line) for line in file]
    assert all(row["status"] == "complete" for row in rows)
    cifs = pd.read_csv(folder / "samples.csv")["cif"]
    return [WyckoffFormat().decode(row["text"]) for row in rows], [Structure.from_str(cif, fmt="cif") for cif in cifs]


def test_samples_of_an_untrained_model_have_their_composition_and_symmetry(symmetric, tmp_path):
    """Decoding checks positions and composition; distances are kept by default."""
    sample(symmetric, output=tmp_path / "out", num_samples=24)
    crystals, structures = drawn(tmp_path / "out")
    assert len({crystal.spacegroup for crystal in crystals}) > 5
    for crystal, structure in zip(crystals, structures, strict=True):
        assert len(structure) == crystal.num_atoms_primitive <= 20
        assert structural_invalid_reason(structure) is None
        assert implausible_reason(structure) is None
        assert_has_operations(structure, crystal.spacegroup)


def assert_has_operations(structure, spacegroup):
    """The crystal has the space group as written, or one that contains it: a multiple of its operations."""
    written = standard_operations(spacegroup)
    found = len(SpacegroupAnalyzer(structure, 0.001).get_symmetry_operations())
    assert found % (len(written.rotations) // written.num_lattice_points) == 0


def test_a_requested_space_group_is_enforced(symmetric, tmp_path):
    sample(symmetric, output=tmp_path / "out", num_samples=8, constraints=["symmetry"], conditions=[{SPACEGROUP: 221}])
    crystals, structures = drawn(tmp_path / "out")
    assert [crystal.spacegroup for crystal in crystals] == [221] * 8
    for structure in structures:
        assert_has_operations(structure, 221)


def test_a_formula_and_a_group_without_places_for_it(symmetric, tmp_path):
    """Pnma has places for four formula units only."""
    sample(
        symmetric,
        output=tmp_path / "out",
        num_samples=4,
        conditions=[{FORMULA: "NaCl", SPACEGROUP: 62}],
        constraints=["symmetry"],
    )
    crystals, _ = drawn(tmp_path / "out")
    assert {crystal.spacegroup for crystal in crystals} == {62}
    assert {tuple(sorted(crystal.composition.items())) for crystal in crystals} <= {
        (("Cl", n), ("Na", n)) for n in (4, 8)
    }


def test_the_constraint_needs_a_group_and_a_model_of_positions(symmetric, trained, tmp_path):
    pnma = [{SPACEGROUP: 62}]
    with pytest.raises(UserError, match="'symmetry' needs a requested space group"):
        sample(symmetric, output=tmp_path / "out", num_samples=1, constraints=["symmetry"])
    with pytest.raises(UserError, match="use the constraint 'symmetry'"):
        sample(symmetric, output=tmp_path / "out", num_samples=1, constraints=["lattice"], conditions=pnma)
    with pytest.raises(UserError, match="'symmetry' needs a model whose texts state Wyckoff positions"):
        sample(trained, output=tmp_path / "out", num_samples=1, constraints=["symmetry"], conditions=pnma)


def test_examples_are_equivalent_descriptions(dataset):
    """With `translate`, an example is one of the descriptions of its crystal at random; without, the canonical one."""
    from crystal_jax.data import mp20
    from crystal_jax.data.examples import crystal_of
    from crystal_jax.data.symmetric import symmetric_text
    from crystal_jax.text.crystal_text import TextFormat

    text_format = TextFormat(version="wyckoff")
    record = next(iter(mp20.open_split(dataset, "train")))
    crystal = crystal_of(record)
    fixed = {symmetric_text(crystal, text_format, None) for _ in range(3)}
    assert fixed == {text_format.encode(crystal)}
    drawn_texts = {symmetric_text(crystal, text_format, np.random.default_rng(i)) for i in range(10)}
    assert fixed <= drawn_texts
    assert len(drawn_texts) == 2  # either element of a rock salt at the origin
