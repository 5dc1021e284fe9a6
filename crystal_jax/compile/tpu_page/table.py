"""Writes docs/TPU.md: every shipped LLaMA-2 configuration compiled for the slices it is meant for.

python -m crystal_jax.compile.tpu_page.table --work=build/tpu --output=docs/TPU.md

Each program takes half a minute to some minutes. Its report is kept in the work folder, and after an interruption the
same command continues from there.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from crystal_jax.compile.aot_report import compile_case, usable_links
from crystal_jax.compile.chips import CHIPS
from crystal_jax.compile.options import CompileOptions
from crystal_jax.compile.topology import topology
from crystal_jax.compile.tpu_page import text as table_text
from crystal_jax.compile.tpu_page.targets import CHOICES, ROWS, SAMPLING, SLICES, TRAINING, Case
from crystal_jax.config import Experiment, MeshConfig, from_config_dict
from crystal_jax.errors import UserError
from crystal_jax.storage.files import write_text

_GIB = 2**30
Result = dict[str, Any]


def main() -> None:
    """Compiles the missing programs, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=Path, default=Path("configs"))
    parser.add_argument("--work", type=Path, default=Path("build/tpu"), help="reports, kept")
    parser.add_argument("--output", type=Path, default=Path("docs/TPU.md"))
    parser.add_argument("--optimization_level", choices=("default", "O1"), default="O1")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    results = {}
    for case in (*TRAINING, *SAMPLING, *CHOICES, *ROWS):
        results[case.key] = load_or_compile(case, args.configs, args.work, level=args.optimization_level)
    write_text(args.output, document(results, level=args.optimization_level))


def load_or_compile(case: Case, configs: Path, work: Path, *, level: str) -> Result:
    """Returns the report of a case, from the work folder if it exists; for a refused program, a dict with `refused`."""
    path = work / level / f"{case.key}.json"
    if path.is_file():
        return json.loads(path.read_text())
    print(f"compiling {case.key}", file=sys.stderr, flush=True)
    try:
        report: Result = compile_case(
            experiment_of(case, configs),
            topology(case.topology, num_slices=case.num_slices),
            config=f"configs/llama2_{case.size}.py:{case.variant}",
            what=case.what,
            options=CompileOptions(
                mesh=MeshConfig.parse(case.mesh) if case.mesh else None,
                rows=case.rows or None,
                coded=case.coded,
                optimization_level=case.level or level,
                compiler_options=dict(case.xla),
            ),
        ).to_json()
    except UserError as error:
        report = {"refused": str(error)}
    write_text(path, json.dumps(report, indent=2) + "\n")
    return report


def experiment_of(case: Case, configs: Path) -> Experiment:
    """Returns the case's configuration with its changes."""
    path = configs / f"llama2_{case.size}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"no configuration {path}; give --configs=FOLDER")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(case.variant)
    for name, value in case.changes:
        section, key = name.split(".")
        config[section][key] = value
    return from_config_dict(config.to_dict(), vocab_size=0)


def document(results: Mapping[str, Result], *, level: str) -> str:
    """Returns the complete page."""
    made_by = next(r["versions"] for r in results.values() if "versions" in r)
    levels = (
        f"training at optimisation level {level}, sampling at the default level"
        if level != "default"
        else "default level"
    )
    packages = ", ".join(f"{name} {made_by[name]}" for name in ("jax", "libtpu", "flax"))
    parts = [
        table_text.HEAD.format(packages=packages, levels=levels),
        training_table(results),
        table_text.TRAINING,
        sampling_table(results),
        table_text.SAMPLING,
        verdicts(results),
        table_text.CHOICES_HEAD,
        choices_table(results),
        table_text.ROWS,
        rows_table(results),
        table_text.CHOICES,
        chips_table(),
        table_text.TAIL,
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _where(case: Case) -> str:
    slices = f"{case.num_slices} × " if case.num_slices > 1 else ""
    return f"{slices}{SLICES[case.topology]} ({case.topology})"


def _mesh(result: Result) -> str:
    return " × ".join(str(size) for size in result["mesh"].values())


def _memory(result: Result) -> str:
    memory = result["memory"]
    sizes = (memory[name] / _GIB for name in ("arguments", "temporaries", "peak", "limit"))
    return "{:.2f} + {:.2f}, peak {:.2f} of {:.2f}".format(*sizes)


def _received(result: Result) -> str:
    kinds = sorted(result["cost"]["collectives"].items(), key=lambda item: -item[1]["bytes"])
    shown = [f"{kind} {traffic['bytes'] / _GIB:.1f}" for kind, traffic in kinds if traffic["bytes"] / _GIB >= 0.05]
    return ", ".join(shown) or "–"


def _time(result: Result) -> str:
    names = {"compute": "products", "memory": "HBM", "links": "links", "network": "network"}
    times = {name: result["estimate"][key] or 0.0 for key, name in names.items()}
    milliseconds = 1e3 * result["estimate"]["step"]
    shown = f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"
    return f"{shown} ms ({max(times, key=lambda name: times[name])})"


def training_table(results: Mapping[str, Result]) -> str:
    """Returns a table with a row per configuration and slice."""
    head = ["config", "slice", "mesh", "rows × tokens", "HBM a chip, GiB", "products / equations", "HBM traffic, GiB"]
    head += ["received, GiB", "step, estimate", "MFU, estimate", "crystals an hour, estimate", "compiled in, s"]
    rows = []
    for case in TRAINING:
        result, name = results[case.key], f"{case.size} `{case.variant}`"
        if "refused" in result:
            rows.append([name, _where(case), result["refused"], *[""] * (len(head) - 3)])
            continue
        cost, estimate = result["cost"], result["estimate"]
        rows.append(
            [
                name,
                _where(case),
                _mesh(result),
                f"{result['rows']} × {result['length']}",
                _memory(result),
                f"{cost['flops'] / result['expected_flops']:.3f}",
                f"{cost['bytes'] / _GIB:,.0f}",
                _received(result),
                _time(result),
                f"{estimate['mfu']:.0%}",
                f"{estimate['crystals_per_hour']:,.0f}",
                f"{result['compile_seconds']:.0f}",
            ]
        )
    return _table(head, rows)


def sampling_table(results: Mapping[str, Result]) -> str:
    """Returns a table with a row per configuration, slice and program."""
    head = ["config", "slice", "program", "mesh", "rows", "HBM a chip, GiB", "HBM traffic, GiB", "/ weights and cache"]
    head += ["received, GiB", "step, estimate", "crystals an hour, estimate", "compiled in, s"]
    rows = []
    for case in SAMPLING:
        result, name = results[case.key], f"{case.size} `{case.variant}`"
        if "refused" in result:
            rows.append([name, _where(case), case.what, result["refused"], *[""] * (len(head) - 4)])
            continue
        needed, hourly = result["expected_bytes"], result["estimate"]["crystals_per_hour"]
        rows.append(
            [
                name,
                _where(case),
                case.what,
                _mesh(result),
                f"{result['rows']:,}",
                _memory(result),
                f"{result['cost']['bytes'] / _GIB:.1f}",
                f"{result['cost']['bytes'] / needed:.2f}" if needed else "",
                _received(result),
                _time(result),
                f"{hourly:,.0f}" if hourly else "",
                f"{result['compile_seconds']:.0f}",
            ]
        )
    return _table(head, rows)


def verdicts(results: Mapping[str, Result]) -> str:
    """Returns a table of the targets, met or missed according to the figures."""
    every = [(case, results[case.key]) for case in (*TRAINING, *SAMPLING)]
    refused = [f"{c.size} `{c.variant}` {c.what} on {_where(c)}" for c, r in every if "refused" in r]
    done = [(case, result) for case, result in every if "refused" not in result]
    products = [(c, r["cost"]["flops"] / r["expected_flops"]) for c, r in done if c.what != "prefill"]
    traffic = [(c, r["cost"]["bytes"] / r["expected_bytes"]) for c, r in done if c.what == "decode"]

    def verdict(ratios: list[tuple[Case, float]], limit: float) -> str:
        above = [f"{c.size} `{c.variant}` {c.what} on {_where(c)} ({r:.2f})" for c, r in ratios if r > limit]
        return f"met by {len(ratios) - len(above)} of {len(ratios)}" + (
            f"; missed by {', '.join(above)}" if above else ""
        )

    rows = [
        ["everything fits", "met" if not refused else f"missed by {', '.join(refused)}"],
        ["products ≤ 1.15 × the equations', training and decode", verdict(products, 1.15)],
        ["decode: HBM traffic ≤ 1.2 × weights and cache", verdict(traffic, 1.2)],
    ]
    return _table(["target", "result"], rows)


def choices_table(results: Mapping[str, Result]) -> str:
    """Returns a table of the effect of each choice, by the compiler's figures."""
    head = ["training step", "temporaries, GiB", "peak, GiB", "products, TFLOP", "HBM traffic, GiB", "received, GiB"]
    head += ["step, estimate"]
    rows = []
    for case in CHOICES:
        result = results[case.key]
        if "refused" in result:
            found = re.search(r"it needs (\S+) of", result["refused"])
            rows.append([case.note, f"refused: {found[1] if found else result['refused']}", *[""] * (len(head) - 2)])
            continue
        memory, cost = result["memory"], result["cost"]
        rows.append(
            [
                case.note,
                f"{memory['temporaries'] / _GIB:.2f}",
                f"{memory['peak'] / _GIB:.2f}",
                f"{cost['flops'] / 1e12:.1f}",
                f"{cost['bytes'] / _GIB:,.0f}",
                _received(result),
                _time(result),
            ]
        )
    return _table(head, rows)


def rows_table(results: Mapping[str, Result]) -> str:
    """Returns a table of memory traffic and yield of a decode step, by the number of rows on a chip."""
    head = ["70B decode on " + _where(ROWS[0]), "cache", "mesh", "rows", "HBM traffic, GiB", "/ weights and cache"]
    head += ["step, estimate", "crystals an hour, estimate"]
    done = [(case, results[case.key]) for case in ROWS if "refused" not in results[case.key]]
    rows = [
        [
            f"`{case.variant}`",
            result["cache"],
            _mesh(result),
            f"{result['rows']:,}",
            f"{result['cost']['bytes'] / _GIB:.1f}",
            f"{result['cost']['bytes'] / result['expected_bytes']:.2f}",
            _time(result),
            f"{result['estimate']['crystals_per_hour']:,.0f}",
        ]
        for case, result in done
    ]
    return _table(head, rows)


def chips_table() -> str:
    """Returns a table of the peaks used in the estimates."""
    head = ["chip", "bf16, TFLOP/s", "HBM, GB/s", "links, GB/s received", "HBM limit, GiB", "source"]
    rows = [
        [
            chip.name,
            f"{chip.tflops:g}",
            f"{chip.hbm_gbps:g}",
            f"{usable_links(chip, (2,) * chip.ici_axes):g}",
            f"{chip.hbm_limit / _GIB:.2f}",
            chip.source,
        ]
        for chip in CHIPS.values()
    ]
    return _table(head, rows)


if __name__ == "__main__":
    main()
