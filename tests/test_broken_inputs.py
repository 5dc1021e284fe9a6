"""Inputs that a generator breaks: a reader takes them or refuses them in one line, and never fails otherwise.

Each reader gets a valid file of its kind, in which hypothesis changes values (types swapped, nulls, not-a-number, huge
numbers, keys that are missing) or bytes (cut off, flipped, zeroed, repeated). The seed is fixed.
"""

import contextlib
import copy
import io
import json
import math
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from crystal_jax import cli
from crystal_jax.checkpoint.formats.easylm import EasyLmSource, write_easylm
from crystal_jax.checkpoint.formats.hf import HfSource, write_hf
from crystal_jax.checkpoint.formats.llama2c import Llama2cSource
from crystal_jax.checkpoint.formats.peft import Adapter, MergedSource, read_peft, write_peft
from crystal_jax.checkpoint.tensors import check, stream
from crystal_jax.checkpoint.workdir import claim as claim_workdir
from crystal_jax.checkpoint.workdir import read_experiment
from crystal_jax.config import LoraConfig, from_config_dict
from crystal_jax.energy.convex_hull.hull import read_hull
from crystal_jax.energy.relaxation.journal import read_journals
from crystal_jax.errors import UserError
from crystal_jax.evaluate.evaluation import read_evaluation
from crystal_jax.evaluate.metrics.external_results import infill_metrics, read_infilled, read_scores
from crystal_jax.evaluate.run import evaluate
from crystal_jax.model.flops import projection_sizes
from crystal_jax.sample.requests import read_requests
from crystal_jax.storage.jsonl_log import JsonlLog, ensure_same_run, release
from crystal_jax.structures import parse, read_entries
from tests.checkpoint.sources import RandomSource
from tests.experiments import TINY, training_config

EXAMPLES = 150  # of each kind of damage and reader
WRONG = [
    None,
    "",
    "x",
    "NaN",
    0,
    -1,
    1.5,
    True,
    math.nan,
    math.inf,
    10**30,
    -(10**400),
    [],
    {},
    [[]],
    {"@module": "os"},
]
LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "v"))
SALT = Structure(Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def places(value, path=()):
    """The paths of all values within a nest of dicts and lists."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


@st.composite
def broken_values(draw, value):
    """JSON text of a value with one to three of its parts replaced or removed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        new = copy.deepcopy(draw(st.sampled_from(WRONG)))
        if not path:
            if draw(st.integers(0, 5)) == 0:  # seldom the whole
                value = new
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[path[-1]] = new
        else:
            del holder[path[-1]]
    return json.dumps(value).encode()


@st.composite
def broken_bytes(draw, content):
    """Bytes that were cut, flipped, zeroed, repeated or led by rubbish."""
    kind = draw(st.sampled_from(["cut", "flip", "zero", "repeat", "insert", "lead"]))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    size = draw(st.integers(1, 64))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "zero":
        return content[:at] + bytes(size) + content[at + size :]
    if kind == "repeat":
        return content[:at] + content[max(0, at - size) :]
    rubbish = draw(
        st.sampled_from([b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\r", b",", b'"', b"{", b"nan", b"1e999", b"-"])
    )
    return content[:at] + rubbish + content[at:] if kind == "insert" else rubbish + content


def assert_one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text, text
    assert len(text) < 1500, text


@contextlib.contextmanager
def refused_or_taken():
    """What a reader may do with a broken file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        assert_one_line(error)


def hf_folder(folder):
    write_hf(folder, RandomSource(TINY), dtype="float32", shard_bytes=50_000)


def read_hf(folder):
    source = HfSource(folder)
    check(folder, source.shapes(), source.config)


def peft_folder(folder):
    rng = np.random.default_rng(0)
    factors = {}
    for target in LORA.targets:
        fan_in, fan_out = projection_sizes(TINY)[target]
        for layer in range(TINY.num_layers):
            factors[target, layer, "A"] = rng.standard_normal((LORA.rank, fan_in)).astype(np.float32)
            factors[target, layer, "B"] = rng.standard_normal((fan_out, LORA.rank)).astype(np.float32)
    write_peft(folder, Adapter(folder, LORA, factors), base="base")


def read_adapter(folder):
    MergedSource(RandomSource(TINY), read_peft(folder))


def meta_folder(folder):
    torch = pytest.importorskip("torch")
    from tests.checkpoint.sources import metas_tensors

    folder.mkdir()
    write_easylm(folder / "easylm", RandomSource(TINY))
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in metas_tensors(folder / "easylm").items()}
    torch.save(tensors, folder / "consolidated.00.pth")
    params = {"dim": TINY.embed_dim, "n_layers": TINY.num_layers, "n_heads": TINY.num_heads, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params | {"n_kv_heads": TINY.num_kv_heads, "norm_eps": 1e-5}))


def read_meta(folder):
    from crystal_jax.checkpoint.formats.meta import MetaSource

    source = MetaSource(folder)
    check(folder, source.shapes(), source.config)


def gguf_folder(folder):
    pytest.importorskip("gguf")
    from tests.checkpoint.gguf_files import WIDE, tensors_of, write_gguf

    folder.mkdir()
    write_easylm(folder / "easylm", RandomSource(WIDE))
    write_gguf(folder / "model.gguf", WIDE, tensors_of(folder / "easylm"))


def read_gguf(folder):
    from crystal_jax.checkpoint.formats.gguf import GgufSource

    source = GgufSource(folder / "model.gguf")
    check(folder, source.shapes(), source.config)


def easylm_folder(folder):
    folder.mkdir()
    write_easylm(folder / "easylm", RandomSource(TINY))


def read_easylm(folder):
    for _ in stream(EasyLmSource(folder / "easylm", TINY)):
        pass


def llama2c_folder(folder):
    folder.mkdir()
    header = [TINY.embed_dim, TINY.mlp_dim, TINY.num_layers, TINY.num_heads, TINY.num_kv_heads, -TINY.vocab_size, 8]
    (folder / "model.bin").write_bytes(np.array(header, "<i4").tobytes() + bytes(4000))


def workdir_folder(folder):
    claim_workdir(folder, from_config_dict(training_config("data"), vocab_size=98))


def hull_folder(folder):
    folder.mkdir()
    entries = [
        {
            "composition": {"Na": 1},
            "energy": -1.3,
            "entry_id": "a",
            "correction": 0.0,
            "parameters": {"run_type": "GGA"},
        },
        {"composition": {"Cl": 1}, "energy": -1.8, "entry_id": "b", "parameters": {}},
        {"composition": "NaCl", "energy": -7.2, "energy_adjustments": [{"name": "x", "value": -0.1}], "data": {}},
    ]
    (folder / "hull.json").write_text(json.dumps(entries))
    (folder / "hull.csv").write_text('composition,formation_energy_per_atom\nNaCl,-2.1\n"{""Na"": 1, ""Cl"": 2}",-1\n')
    (folder / "x-elemental-reference-entries.json").write_text(json.dumps(entries[:2]))


def output_folder(folder):
    folder.mkdir()
    request = {"seed": 0, "elements": ["Li", "P"], "step": 3}
    (folder / "run.json").write_text(json.dumps({"request": request, "provenance": {"python": "3"}}))
    rows = [{"index": i, "status": "complete", "prompt": "p", "text": "t", "reason": None} for i in range(3)]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_output(folder):
    try:
        ensure_same_run(folder, {"seed": 0, "elements": ["Li", "P"], "step": 3}, {})
        JsonlLog(folder / "samples.jsonl", {"index": int, "status": str, "prompt": str, "text": str}).rows()
    finally:
        release(folder)


def scores_folder(folder):
    folder.mkdir()
    row = {
        "index": 0,
        "name": "a",
        "reason": None,
        "perplexity": 2.0,
        "ipt": 0.1,
        "translations": [{"shift": [0, 0, 0]}],
    }
    (folder / "scores.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"index": 1}) + "\n")
    (folder / "elements.csv").write_text("symbol,probability,log_prob,allowed,baseline\nLi,0.7,-1,True,0.5\n")
    (folder / "run.json").write_text(json.dumps({"request": {"element": "Li"}}))


def read_model_results(folder):
    rows = pd.DataFrame({"name": ["a", "b"]}).assign(e_above_hull=math.nan, valid=True)
    read_scores(folder / "scores.jsonl", num_samples=len(rows))
    infill_metrics([read_infilled(folder)], rows)


def relaxations_folder(folder):
    folder.mkdir()
    row = {"key": "k", "status": "converged", "reason": "", "energy": -1.0, "steps": 3, "relaxed_cif": "data_"}
    (folder / "host-1.jsonl").write_text(json.dumps(row) + "\n")


def evaluation_folder(folder):
    folder.mkdir()
    pd.DataFrame({"cif": [SALT.to(fmt="cif"), ""]}).to_csv(folder / "samples.csv", index=False)
    evaluate(folder / "samples.csv", output=folder, progress=False, workers=1)


def crystals_folder(folder):
    folder.mkdir()
    SALT.to(filename=str(folder / "salt.cif"))
    pd.DataFrame({"material_id": ["a"], "cif": [SALT.to(fmt="cif")]}).to_csv(folder / "table.csv", index=False)
    (folder / "POSCAR").write_text(SALT.to(fmt="poscar"))
    (folder / "salt.json").write_text(json.dumps(SALT.as_dict()))
    lattice = " ".join(str(x) for x in SALT.lattice.matrix.ravel())
    header = f'2\nLattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"\n'
    (folder / "salt.extxyz").write_text(header + "Na 0 0 0\nCl 2.82 2.82 2.82\n")


def requests_folder(folder):
    folder.mkdir()
    text = 'formula,spacegroup,e_above_hull,elements,name\nNaCl,225,0.0,,salt\n,Pnma,,"Li,P,S",\n'
    (folder / "requests.csv").write_text(text)


def read_crystals(name):
    def read(folder):
        for entry in read_entries(folder / name):
            parse(entry)

    return read


# Name → what writes a valid folder, the file that is broken, and what reads the folder.
JSON_READERS = {
    "config.json": (hf_folder, "config.json", read_hf),
    "index": (hf_folder, "model.safetensors.index.json", read_hf),
    "adapter_config.json": (
        peft_folder,
        "adapter_config.json",
        lambda f: MergedSource(RandomSource(TINY), read_peft(f)),
    ),
    "params.json": (meta_folder, "params.json", read_meta),
    "workdir": (workdir_folder, "config.json", read_experiment),
    "hull": (hull_folder, "hull.json", lambda f: read_hull(f / "hull.json")),
    "elements of a hull": (hull_folder, "x-elemental-reference-entries.json", lambda f: read_hull(f / "hull.csv")),
    "run.json": (output_folder, "run.json", read_output),
    "scores": (scores_folder, "scores.jsonl", read_model_results),
    "relaxations": (relaxations_folder, "host-1.jsonl", read_journals),
    "metrics.json": (evaluation_folder, "metrics.json", read_evaluation),
    "crystal": (crystals_folder, "salt.json", read_crystals("salt.json")),
}
SHARD = "model-00001-of-00006.safetensors"
BYTES_READERS = {
    **JSON_READERS,
    "safetensors": (hf_folder, SHARD, read_hf),
    "adapter": (peft_folder, "adapter_model.safetensors", read_adapter),
    "consolidated": (meta_folder, "consolidated.00.pth", read_meta),
    "gguf": (gguf_folder, "model.gguf", read_gguf),
    "easylm": (easylm_folder, "easylm", read_easylm),
    "llama2c": (llama2c_folder, "model.bin", lambda f: Llama2cSource(f / "model.bin")),
    "requests": (requests_folder, "requests.csv", lambda f: read_requests(f / "requests.csv")),
    "hull.csv": (hull_folder, "hull.csv", lambda f: read_hull(f / "hull.csv")),
    "samples.jsonl": (output_folder, "samples.jsonl", read_output),
    "elements.csv": (scores_folder, "elements.csv", read_model_results),
    "structures.csv": (evaluation_folder, "structures.csv", read_evaluation),
    "CIF": (crystals_folder, "salt.cif", read_crystals("salt.cif")),
    "table": (crystals_folder, "table.csv", read_crystals("table.csv")),
    "POSCAR": (crystals_folder, "POSCAR", read_crystals("POSCAR")),
    "extxyz": (crystals_folder, "salt.extxyz", read_crystals("salt.extxyz")),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A valid folder of each kind, made once."""
    made = {}

    def folder_of(make):
        if make not in made:
            made[make] = tmp_path_factory.mktemp("whole") / "folder"
            make(made[make])
        return made[make]

    return folder_of


def parse_lines(content):
    """JSON, or JSON lines as a list."""
    try:
        return json.loads(content), False
    except ValueError:
        return [json.loads(line) for line in content.splitlines()], True


def try_it(folder, file, content, read):
    with tempfile.TemporaryDirectory() as place:
        broken = Path(place) / "folder"
        shutil.copytree(folder, broken)
        (broken / file).write_bytes(content)
        with refused_or_taken(), contextlib.redirect_stderr(io.StringIO()):
            read(broken)


@pytest.mark.parametrize("reader", BYTES_READERS)
def test_the_whole_file_is_taken(whole, reader):
    make, file, read = BYTES_READERS[reader]
    folder = whole(make)
    assert (folder / file).is_file()
    if reader != "llama2c":  # of which only the header is made here
        with contextlib.redirect_stderr(io.StringIO()):
            read(folder)


@pytest.mark.parametrize("reader", JSON_READERS)
def test_wrong_values(whole, reader):
    make, file, read = JSON_READERS[reader]
    folder = whole(make)
    value, in_lines = parse_lines((folder / file).read_bytes())

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(broken_values(value))
    def run(content):
        if in_lines and isinstance(rows := json.loads(content), list):
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try_it(folder, file, content, read)

    run()


@pytest.mark.parametrize("reader", BYTES_READERS)
def test_wrong_bytes(whole, reader):
    make, file, read = BYTES_READERS[reader]
    folder = whole(make)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(broken_bytes((folder / file).read_bytes()))
    def run(content):
        try_it(folder, file, content, read)

    run()


COMMANDS = {
    "dft": (hull_folder, "hull.json", ["dft", "collect", "--evaluation={f}", "--runs={f}", "--hull={f}/hull.json"]),
    "convert": (hf_folder, "config.json", ["convert", "--from=hf", "--to=hf", "--input={f}", "--output={f}/out"]),
    "report": (evaluation_folder, "metrics.json", ["report", "--evaluation={f}", "--output={f}/r.html"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_with_one_line_and_leave_nothing_that_looks_whole(whole, command):
    make, file, arguments = COMMANDS[command]
    folder = whole(make)
    value, _ = parse_lines((folder / file).read_bytes())

    @settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
    @given(st.one_of(broken_values(value), broken_bytes((folder / file).read_bytes())))
    def run(content):
        with tempfile.TemporaryDirectory() as place:
            broken = Path(place) / "folder"
            shutil.copytree(folder, broken)
            (broken / file).write_bytes(content)
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = cli.main([argument.format(f=broken) for argument in arguments])
            assert status in (0, 1, 2)
            if status:
                lines = [line for line in said.getvalue().splitlines() if line.startswith("crystal-jax ")]
                assert len(lines) == 1
                assert_one_line(lines[0])
                assert not (broken / "out/config.json").exists()
                assert not (broken / "r.html").exists()

    run()
