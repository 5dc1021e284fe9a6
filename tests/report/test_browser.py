"""The page as a browser sees it: no message on the console, and the crystals are drawn."""

import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from crystal_jax.evaluate.run import evaluate
from crystal_jax.report.html import write_report

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
# Appended to a copy of the page: how many different colours each canvas has, said in the document.
PROBE = """<script>
setTimeout(() => {
  document.body.dataset.colours = [...document.querySelectorAll("canvas")].map(canvas => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(Array.from({length: data.length / 4}, (_, i) => data.slice(4 * i, 4 * i + 3).join())).size;
  }).join(" ");
}, 1000);
</script></body>"""


def browse(path, profile):
    """The document after its scripts ran, and what was written to the console."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    options += ["--virtual-time-budget=20000", f"--user-data-dir={profile}", "--disable-dev-shm-usage"]
    done = subprocess.run([CHROMIUM, *options, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def colours_of(path, profile):
    """The numbers of different colours on the canvases of a page without messages on its console."""
    document, console = browse(path, profile)
    assert console == []
    return [int(count) for count in re.search(r'data-colours="([^"]*)"', document)[1].split()]


@pytest.fixture
def report(tmp_path):
    """Salt and an alloy, found and measured."""
    sodium = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    salt = Structure(Lattice.cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, [*sodium, *(sodium + 0.5)])
    alloy = Structure(Lattice.cubic(3.2), ["Cu", "Zn"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    pd.DataFrame({"cif": [salt.to(fmt="cif"), alloy.to(fmt="cif")]}).to_csv(tmp_path / "samples.csv", index=False)
    out = tmp_path / "out"
    evaluate(tmp_path / "samples.csv", output=out, reference=str(tmp_path / "samples.csv"), progress=False)
    return write_report(out)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_the_page_runs_and_draws(report, tmp_path):
    text = report.read_text(encoding="utf-8")
    probed = tmp_path / "probed.html"
    probed.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    salt, alloy = colours_of(probed, tmp_path / "profile")
    assert min(salt, alloy) > 20  # spheres are shaded; an empty canvas has one colour

    switched = tmp_path / "switched.html"
    click = "<script>document.querySelectorAll('[data-view={}]').forEach(box => box.click());</script>"
    switched.write_text(text.replace("</body>", click.format("polyhedra") + PROBE), encoding="utf-8")
    assert colours_of(switched, tmp_path / "profile")[0] != salt
    switched.write_text(text.replace("</body>", click.format("supercell") + PROBE), encoding="utf-8")
    assert colours_of(switched, tmp_path / "profile")[1] != alloy

    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("</body>", "<script>nothing.at.all()</script></body>"), encoding="utf-8")
    assert browse(broken, tmp_path / "profile")[1], "a mistake on the page would not be seen"
