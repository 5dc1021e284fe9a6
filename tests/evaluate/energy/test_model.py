import numpy as np
import pytest

from crystal_jax.errors import UserError
from crystal_jax.evaluate.energy.guard import check, known
from crystal_jax.evaluate.energy.model import Cell, Prediction, load_model
from tests.evaluate.energy.conftest import rock_salt


class Shifted:
    """Gives the right energies, but for a constant an atom."""

    name, corrected, elements = "a model", False, frozenset(range(1, 95))

    def __init__(self, shift):
        self.shift = shift

    def predict(self, cells):
        return [
            Prediction((compound.raw + self.shift) * len(cell.numbers), np.zeros((len(cell.numbers), 3)), np.eye(3))
            for compound, cell in zip(known(), cells, strict=True)
        ]


def test_the_guard_asks_compounds():
    check(Shifted(0.05))
    with pytest.raises(UserError, match=r"a model gives -1\.2885 eV/atom for NaCl, PBE about -3\.3885"):
        check(Shifted(2.1))
    with pytest.raises(UserError):
        check(Shifted(np.nan))


def test_m3gnet_passes_the_guard_to_four_digits(m3gnet, weights):
    check(m3gnet, tolerance=1e-4)
    assert load_model("m3gnet", weights=weights).name == "M3GNet MP-2021.2.8-EFS"


def test_chgnet():
    pytest.importorskip("chgnet")
    model = load_model("chgnet")
    assert model.corrected
    (found,) = model.predict([Cell.of(known()[0].structure)])
    assert found.energy / 2 == pytest.approx(-3.668, abs=1e-3)
    step, cell = 1e-3, rock_salt(5.5)
    up, down, here = model.predict([Cell.of(rock_salt(5.5 * (1 + e))) for e in (step, -step, 0)])
    pressure = np.trace(here.stress) * cell.volume
    assert (up.energy - down.energy) / (2 * step) == pytest.approx(pressure, rel=0.02)


def test_weights_that_matgl_misreads_are_refused(shared):
    pytest.importorskip("matgl")
    folder = shared / "weights/matgl/M3GNet-MP-2021.2.8-PES"
    with pytest.raises(UserError, match=r"gives -1\.\d+ eV/atom for NaCl.*loaded wrongly"):
        load_model(f"matgl:{folder}")
    with pytest.raises(UserError, match="no such folder of a matgl model"):
        load_model("matgl:./nowhere")


@pytest.mark.parametrize("name", ["m4gnet", "matgl", "m3gnet:x", ""])
def test_unknown_models(name):
    with pytest.raises(UserError, match="--energy_model is m3gnet, chgnet, matgl:NAME or none"):
        load_model(name)


def test_a_cell_is_its_structure():
    structure = rock_salt(5.6)
    cell = Cell.of(structure)
    assert cell.volume == pytest.approx(structure.volume)
    assert cell.to_structure().matches(structure)
