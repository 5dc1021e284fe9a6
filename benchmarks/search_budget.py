"""Tree search against plain sampling at an equal number of model calls: how low in energy is the best that they find?

For each formula both write crystals of one formula unit with crystal-tiny; the reward is minus CHGNet's energy per
atom, unrelaxed. A search counts its calls; plain sampling writes as many crystals as the same number allows, one call a
token. Prompt and first line are read before, by both. See README.md.

    PYTHONPATH=. python benchmarks/search_budget.py --budget=3000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
from pymatgen.core import Composition

from crystal_jax.sample.run import sample
from crystal_jax.search.rewards import Reward, named_reward
from crystal_jax.search.run import search
from crystal_jax.text.crystal_text import TextFormat

WORST = 10.0  # eV/atom: what `named_reward` gives to what is no structure

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--checkpoint", default="crystal-tiny")
_parser.add_argument("--formulas", default="Rb2PtF6,K2LiInF6,Na4UO5,CsLi2Br3,Sr2H6Ru,BaEu2CoO5")
_parser.add_argument("--budget", type=int, default=3000, help="model calls of each contestant and formula")
_parser.add_argument("--reward", default="chgnet")


def main() -> None:
    args = _parser.parse_args()
    reward = named_reward(args.reward)
    print(f"{args.budget} model calls each; energies in eV/atom, means of what is a structure\n")
    head = "".join(f"{name + ':':>9} lowest    mean  structures  crystals" for name in ("search", "plain"))
    print(f"{'':10}{head}")
    lower = []
    for formula in args.formulas.split(","):
        with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
            found = searched(args.checkpoint, formula, reward, args.budget, Path(place) / "search")
            plain = sampled(args.checkpoint, formula, reward, args.budget, Path(place) / "plain")
        print(f"{formula:10}{row(found)}{row(plain)}", flush=True)
        lower.append((min(found) < min(plain), mean(found) < mean(plain)))
    best, means = np.sum(lower, axis=0)
    print(f"\nlower by search: the lowest energy of {best}, the mean of {means}, of {len(lower)} formulas")
    print(f"load average at the end {os.getloadavg()[0]:.2f}")


def row(energies: list[float]) -> str:
    structures = sum(energy < WORST for energy in energies)
    return f"{min(energies):16.3f}{mean(energies):8.3f}{structures:12}{len(energies):10}"


def mean(energies: list[float]) -> float:
    return float(np.mean([energy for energy in energies if energy < WORST]))


def searched(checkpoint: str, formula: str, reward: Reward, budget: int, output: Path) -> list[float]:
    """Energies of the different crystals that a search finds."""
    search(
        checkpoint,
        output=output,
        reward=reward,
        reward_name="energy",
        budget=budget,
        conditions={"pretty_formula": formula},
        max_atoms=int(Composition(formula).num_atoms),
    )
    return [-json.loads(line)["reward"] for line in (output / "samples.jsonl").open()]


def sampled(checkpoint: str, formula: str, reward: Reward, budget: int, output: Path) -> list[float]:
    """Energies of the different crystals that plain sampling writes with as many calls."""
    atoms = int(Composition(formula).num_atoms)
    sample(
        checkpoint,
        output=output,
        num_samples=budget // (6 + 4 * atoms + 1),  # lengths and angles, atoms, the end
        conditions={"pretty_formula": formula},
        constraints=["formula"],
        min_atoms=atoms,
        max_atoms=atoms,
    )
    rows = [json.loads(line) for line in (output / "samples.jsonl").open()]
    texts = {row["text"]: TextFormat(version=row["text_format"]) for row in rows}
    return [-reward(text_format.decode(text)) for text, text_format in texts.items()]


if __name__ == "__main__":
    main()
