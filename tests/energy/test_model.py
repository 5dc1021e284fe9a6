import json

import numpy as np
import pytest

from crystal_jax.energy.model import Cell, Prediction, load_model
from crystal_jax.energy.sanity_check import check, known
from crystal_jax.errors import UserError
from tests.energy.conftest import rock_salt


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


class Spy:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the file was obeyed')",)


def matgl_folder(folder, *, stated, arguments):
    torch = pytest.importorskip("torch")
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps(stated))
    torch.save(arguments, folder / "model.pt")
    torch.save({}, folder / "state.pt")
    return folder


@pytest.mark.parametrize("file", ["model.json", "model.pt"])
@pytest.mark.parametrize("module", ["spy_module", "os", "matgl.cli", "matglx.models", 3])
def test_a_folder_that_names_other_modules_is_refused(tmp_path, monkeypatch, file, module):
    pytest.importorskip("matgl")
    (tmp_path / "spy_module.py").write_text("raise SystemExit('the file was obeyed')\n")
    monkeypatch.syspath_prepend(tmp_path)
    good = {
        "@class": "Potential",
        "@module": "matgl.apps.pes",
        "kwargs": {"model": {"@module": "matgl.models._m3gnet"}},
    }
    bad = {"model": {"@class": "Spy", "@module": module, "init_args": {}}}
    folder = matgl_folder(
        tmp_path / "model",
        stated=good | bad if file == "model.json" else good,
        arguments=bad if file == "model.pt" else {},
    )
    with pytest.raises(UserError, match=rf"{file} is refused: it names the module '{module}', not a model of matgl"):
        load_model(f"matgl:{folder}")


def test_a_folder_with_code_in_its_pickle_is_refused(tmp_path):
    pytest.importorskip("matgl")
    folder = matgl_folder(tmp_path / "model", stated={}, arguments={"model": Spy()})
    with pytest.raises(UserError, match=r"model\.pt is refused: it holds more than plain values, or is damaged"):
        load_model(f"matgl:{folder}")
    (folder / "model.json").write_text("{")
    with pytest.raises(UserError, match=r"model\.json is damaged"):
        load_model(f"matgl:{folder}")
    (folder / "model.json").unlink()
    with pytest.raises(UserError, match=r"lacks model\.json"):
        load_model(f"matgl:{folder}")


@pytest.mark.parametrize("name", ["m4gnet", "matgl", "m3gnet:x", ""])
def test_unknown_models(name):
    with pytest.raises(
        UserError, match="--energy_model is m3gnet, nequix, chgnet, matgl:NAME, ase:MODULE:FACTORY or none"
    ):
        load_model(name)


def test_a_cell_is_its_structure():
    structure = rock_salt(5.6)
    cell = Cell.of(structure)
    assert cell.volume == pytest.approx(structure.volume)
    assert cell.to_structure().matches(structure)
