"""Imports point only backwards along the way of the data (docs/DESIGN.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What a package may import, besides itself and the shared leaves.
ALLOWED = {
    "arguments": set(),
    "callable_package": set(),
    "errors": set(),
    "flag_fields": set(),
    "processes": set(),
    "program_cache": {"storage"},
    "progress": set(),
    "provenance": set(),
    "symmetry": set(),
    "text": {"symmetry"},
    "storage": set(),
    "suppress_warnings": set(),
    "tables": set(),
    "allocator": set(),
    "json_files": set(),
    "old_names": set(),
    # Ahead, inside one function: a prepared data set serves as reference too.
    "structures": {"data"},
    "config": {"text"},
    "data": {"text", "config", "tfds_mp20", "symmetry"},
    "model": {"config", "sharding"},
    "sharding": {"config"},
    "checkpoint": {"config", "model", "sharding", "text"},
    # Ahead, in train/sample_eval.py alone: samples are drawn and judged while a model trains.
    "train": {"text", "config", "data", "model", "sharding", "checkpoint", "sample", "evaluate", "structures"},
    # Ahead, for its rules: samples can be made to keep to what the evaluator calls valid.
    "sample": {"text", "config", "model", "sharding", "checkpoint", "evaluate", "structures", "symmetry"},
    "score": {"text", "config", "model", "sharding", "checkpoint", "structures"},
    "infill": {"text", "config", "sharding", "checkpoint", "score", "evaluate", "structures"},
    "search": {"text", "config", "model", "sharding", "checkpoint", "sample", "evaluate", "energy"},
    "compile": {"text", "config", "model", "sharding", "checkpoint", "train", "sample"},
    "energy": {"structures"},
    "relax": {"structures", "energy", "evaluate"},
    "hull": {"structures", "energy", "evaluate"},
    "evaluate": {"structures", "energy", "text"},
    "report": {"evaluate", "energy", "structures", "symmetry"},
    "dft": {"evaluate", "energy", "structures"},
    "sweep": {"text", "config", "evaluate", "structures"},
    "demo": {"checkpoint", "data", "train", "sample", "energy", "evaluate", "report"},
    "cli": set(),
    "config_key": set(),
    "tfds_mp20": {"structures"},
}
LEAVES = {
    "__version__",
    "allocator",
    "arguments",
    "callable_package",
    "config_key",
    "errors",
    "flag_fields",
    "json_files",
    "old_names",
    "processes",
    "program_cache",
    "progress",
    "provenance",
    "storage",
    "suppress_warnings",
    "tables",
}
# Commands are edges: only the command line and the demo, which is a chain of them, may know them.
EDGES = {"run"}
MAY_IMPORT_RUN = {"demo", "cli", "__init__"}
# Commands that write the report at their end.
MAY_IMPORT_REPORT = {"crystal_jax/evaluate/run.py", "crystal_jax/dft/collect.py"}


def modules():
    for path in sorted([*ROOT.glob("crystal_jax/**/*.py"), *ROOT.glob("tfds_mp20/*.py")]):
        if path.name.endswith("_test.py") or path == ROOT / "crystal_jax/__init__.py":
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield path, parts[1] if parts[0] == "crystal_jax" else parts[0]


def imported(path):
    """Dotted names of this project that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in ("crystal_jax", "tfds_mp20"):
                yield name


def test_the_table_knows_every_package():
    assert {package for _, package in modules()} == set(ALLOWED)


@pytest.mark.parametrize(("path", "package"), [pytest.param(p, k, id=str(p.relative_to(ROOT))) for p, k in modules()])
def test_imports_point_backwards(path, package):
    for name in imported(path):
        parts = name.split(".")
        target = "tfds_mp20" if parts[0] == "tfds_mp20" else parts[1]
        allowed = (
            ALLOWED[package] | LEAVES | ({"report"} if str(path.relative_to(ROOT)) in MAY_IMPORT_REPORT else set())
        )
        assert target == package or target in allowed, f"{path} imports {name}"
        if EDGES & set(parts[2:3]):
            assert package in MAY_IMPORT_RUN, f"{path} imports the edge {name}"


@pytest.mark.parametrize(
    "module", ["crystal_jax.evaluate.run", "crystal_jax.report.run", "crystal_jax.text.grammar.crystal"]
)
def test_host_side_code_never_loads_jax(module):
    code = f"import sys, {module}; sys.exit('jax' in sys.modules or 'tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# What takes seconds to import; a command's --help and a mistyped flag must answer at once.
HEAVY = {"flax", "jax", "pandas", "pymatgen", "scipy", "tensorflow", "tensorflow_datasets", "torch"}
# Commands whose module and flags load none of these.
LIGHT_COMMANDS = ("prepare", "train", "sample", "infill", "search", "score", "compile", "convert", "sweep")
DEFINE_FLAGS = f"""
import importlib, sys
from absl import flags
from crystal_jax.cli import COMMANDS
loaded = {{}}
for command in {LIGHT_COMMANDS}:
    importlib.import_module(COMMANDS[command][0]).define_flags(flags.FlagValues())
    for name in {sorted(HEAVY)}:
        if name in sys.modules:
            loaded.setdefault(name, command)
print(loaded)
"""


def test_flags_are_defined_without_heavy_imports():
    """In one process for all commands: what is printed names the first command that loads a package."""
    child = subprocess.run([sys.executable, "-c", DEFINE_FLAGS], cwd=ROOT, check=True, capture_output=True, text=True)
    assert child.stdout.strip() == "{}"


def test_no_module_is_named_after_nothing():
    assert not [p for p, _ in modules() if p.stem in ("utils", "helpers", "misc", "common")]
