"""Text, tokens and grammar on every crystal of `mp20_open`, translated at random."""

import gzip
from csv import DictReader

import numpy as np
import pytest

from crystal_jax.text.crystal_text import Crystal, TextFormat
from crystal_jax.text.grammar import crystal_automaton
from crystal_jax.text.tokenizer import encode_example, load_tokenizer

ROWS = {"train": 12_901, "val": 1_000, "test": 1_590}


def crystal_of(cif: str) -> Crystal:
    """Reads the CIFs of this data set, which are all P1 and laid out alike; pymatgen would take minutes."""
    words = dict(line.split(None, 1) for line in cif.split("loop_")[0].splitlines() if line.startswith("_cell"))
    sites = [line.split() for line in cif.split("_atom_site_occupancy\n")[1].splitlines() if line.strip()]
    return Crystal(
        np.array([float(words[f"_cell_length_{axis}"]) for axis in "abc"]),
        np.array([float(words[f"_cell_angle_{name}"]) for name in ("alpha", "beta", "gamma")]),
        np.array([[float(x) for x in site[3:6]] for site in sites]),
        tuple(site[0] for site in sites),
    )


@pytest.fixture(scope="module")
def crystals(shared):
    rng = np.random.default_rng(0)
    found = []
    for split, number in ROWS.items():
        with gzip.open(shared / f"data/mp20_open/{split}.csv.gz", "rt") as file:
            rows = [crystal_of(row["cif"]).translated(rng.random(3)) for row in DictReader(file)]
        assert len(rows) == number
        found += rows
    return found


@pytest.mark.parametrize("version", ["v2", "paper"])
def test_every_crystal_survives_its_text(crystals, version):
    text_format = TextFormat(version=version)
    for crystal in crystals:
        text = text_format.encode(crystal)
        back = text_format.decode(text)
        assert back.symbols == crystal.symbols
        assert abs(back.lengths - crystal.lengths).max() <= 0.05 + 1e-9
        assert abs(back.angles - crystal.angles).max() <= (0.5 if version == "v2" else 1)
        difference = np.abs(np.mod(back.frac_coords - crystal.frac_coords + 0.5, 1) - 0.5)
        assert difference.max() <= 0.005 + 1e-9
        if version == "v2":
            assert text_format.encode(back) == text


@pytest.mark.parametrize("name", ["atom_coordinate", "character", "llama2"])
def test_every_crystal_is_tokenised_and_accepted(crystals, name, shared):
    tokenizer = load_tokenizer(name, shared / "tokenizer/tokenizer.model")
    text_format, prompt = TextFormat(), "\n"
    automaton = crystal_automaton(tokenizer, text_format, max_atoms=20)
    for crystal in crystals:
        text = text_format.encode(crystal)
        head, body = encode_example(tokenizer, prompt, text)
        assert tokenizer.decode(head + body) == prompt + text
        assert automaton.accepts([*body, tokenizer.eos_id])
