"""Wheels and data for a GPU machine without network."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu import bundle
from crystal_jax.config import DataConfig
from crystal_jax.data.examples import ExampleMaker
from crystal_jax.data.mp20 import open_split
from crystal_jax.text.tokenizer import AtomCoordinateTokenizer

ROOT = Path(__file__).parents[2]

# In place of pip: writes one wheel of a million bytes, and one of a source.
PIP = """#!/usr/bin/env bash
case "$1 $2 $3" in
    "-m pip download") name=a-1 bytes=1000000 ;;
    "-m pip wheel") name=b-1 bytes=1 ;;
    *) exec %s "$@" ;;
esac
for word; do
    case "$word" in
        --dest=* | --wheel-dir=*) head -c "$bytes" /dev/zero > "${word#*=}/$name.whl" ;;
    esac
done
"""


def collect(*arguments, python=sys.executable):
    environment = {**os.environ, "PYTHON": str(python)}
    script = ROOT / "launch/gpu_wheels.sh"
    return subprocess.run([script, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def pip(tmp_path):
    path = tmp_path / "python"
    path.write_text(PIP % shlex.quote(sys.executable))
    path.chmod(0o755)
    return path


def pins(done):
    """Name → version of what the commands of a dry run fetch."""
    assert done.returncode == 0, done.stderr
    words = [word for line in done.stdout.splitlines() for word in shlex.split(line)]
    return dict(word.split("==") for word in words if re.fullmatch(r"[\w-]+==[\w.]+", word))


def test_what_the_machine_has_or_nobody_imports_is_left_out():
    fetched = pins(collect("--dry_run"))
    assert {"pymatgen", "pymatgen-core", "grain", "array-record", "ml-collections", "promise"} <= set(fetched)
    assert not {"jax", "numpy", "flax", "plotly", "mp-api"} & set(fetched)
    names = [line for line in (ROOT / "launch/gpu_packages.txt").read_text().splitlines() if line[0] != "#"]
    required = {re.split("==", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()}
    assert set(names) <= required
    assert names == sorted(set(names))


def test_markers_are_those_of_the_machine(tmp_path):
    has = tmp_path / "has.txt"
    has.write_text("# it has\nNumPy  # in some version\nruamel.yaml\n")
    older, newer = (pins(collect("--dry_run", f"--has={has}", f"--python={version}")) for version in ("3.11", "3.12"))
    assert older["jax"] != newer["jax"]
    assert not {"numpy", "ruamel-yaml", "colorama", "tzdata"} & set(newer)


def test_wheels_replace_those_of_before(pip, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "a-0.whl").touch()
    done = collect(f"--folder={folder}", python=pip)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["a-1.whl", "b-1.whl"]
    assert f"2 MB in {folder}" in done.stdout
    assert "pip install --no-index --no-deps --no-compile --upgrade --target DIR wheels/*.whl" in done.stdout


def test_too_many_megabytes_and_wrong_options_are_one_line(pip, tmp_path):
    folder = tmp_path / "wheels"
    for arguments, message in (
        ((f"--folder={folder}", "--limit=1"), "the wheels have 2 MB, more than --limit=1"),
        (("--limit=much",), "--limit=much is not a number"),
        (("--python=3",), "--python=3 is not a version"),
        (("--has=none.txt",), "there is no "),
    ):
        done = collect(*arguments, python=pip)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not folder.exists()


@pytest.fixture(scope="module")
def maker():
    tokenizer = AtomCoordinateTokenizer()
    experiment = bundle.experiment_for(tokenizer)
    return ExampleMaker(tokenizer, experiment.text, experiment.task)


def test_a_copied_data_set_reads_the_same(dataset, tmp_path):
    bundle.copy_dataset(dataset, tmp_path / "copy")
    for split in ("train", "val", "test"):
        pair = [open_split(folder, split) for folder in (dataset, tmp_path / "copy")]
        assert len(pair[0]) == len(pair[1])
        for one, other in zip(*pair, strict=True):
            assert (one.cif, one.material_id, one.formula) == (other.cif, other.material_id, other.formula)
            np.testing.assert_array_equal(one.frac_coords, other.frac_coords)


def test_batches_are_those_of_the_pipeline(dataset, maker):
    small = DataConfig(directory="", seq_len=128, batch_size=4, packing_bins=4, shards=2, seed=0)
    packed = bundle.packed_batches(open_split(dataset, "train"), maker, small, number=3)
    assert {name: values.dtype.name for name, values in packed.items()} == {
        **dict.fromkeys(("tokens", "targets", "positions", "segments"), "int32"),
        "weights": "float32",
    }
    assert {values.shape for values in packed.values()} == {(3, 4, 128)}
    assert (packed["weights"][packed["segments"] == 0] == 0).all()
    np.testing.assert_array_equal(packed["tokens"][..., 0], maker.tokenizer.bos_id)


def test_sizes_of_crystals(dataset, maker):
    records = open_split(dataset, "train")[: bundle.CRYSTALS]
    sizes = bundle.crystal_sizes(records, maker)
    assert len(sizes) == len(records)
    for size, record in zip(sizes, records, strict=True):
        assert size["formula"] == record.formula
        assert sum(size["atoms"].values()) == len(record.atomic_numbers)
        # An element and three coordinates a site, between six numbers of the lattice and the EOS.
        assert size["tokens"] == 7 + 4 * len(record.atomic_numbers)


def test_the_manifest_lists_every_file(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.txt").write_text("b")
    bundle.write_manifest(tmp_path)
    bundle.add_file(tmp_path, "references/c.json", b"{}")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest["files"]) == ["a/b.txt", "references/c.json"]
    assert manifest["files"]["a/b.txt"] == {"bytes": 1, "sha256": hashlib.sha256(b"b").hexdigest()}
    assert {"crystal_jax", "python", "numpy"} <= set(manifest["versions"])


def test_what_is_missing_is_one_line(tmp_path, capsys):
    assert bundle.main([f"--shared={tmp_path}/none", f"--output={tmp_path}/new"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"bundle: --shared={tmp_path}/none lacks ")
    assert said.count("\n") == 1
    (tmp_path / "file").touch()
    assert bundle.main([f"--shared={tmp_path}", f"--output={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
