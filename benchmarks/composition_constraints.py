"""How near are compositions under constraints to the model's own distribution, restricted to the constraints?

Draws composition lines of a model without constraints, keeps those that fulfil a constraint (the exact answer, with the
noise of its count), and compares them with lines drawn under the constraint with 1, 8 and 32 proposals
(sample/composition.py). Printed are the shares of compositions with one, two, three, ... elements, and the total
variation distance between both distributions of chemical systems' sizes and of formulas' elements.

    python benchmarks/composition_constraints.py --lines=40000 --output=composition_constraints.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from crystal_jax.checkpoint.models import load_trained
from crystal_jax.config import MeshConfig
from crystal_jax.sample import composition
from crystal_jax.sample.composition import CompositionRequest, CompositionSampler
from crystal_jax.sharding import make_mesh
from crystal_jax.text.grammar.composition import CompositionGrammar
from crystal_jax.text.grammar.composition_constraint import CompositionConstraint
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import load_tokenizer, prompt_ids

CONSTRAINTS = {
    "oxides and metals of the first row": CompositionConstraint(
        elements=("O", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn")
    ),
    "two elements of the main groups": CompositionConstraint(
        elements=("Li", "Na", "K", "Mg", "Ca", "Sr", "Ba", "F", "Cl", "Br", "O", "S", "Se"), max_elements=2
    ),
    "at most six atoms": CompositionConstraint(max_atoms=6),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", default="crystal-tiny")
    parser.add_argument("--lines", type=int, default=40_000)
    parser.add_argument("--constrained", type=int, default=1000)
    parser.add_argument("--output", default="composition_constraints.json")
    args = parser.parse_args()

    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
    trained = load_trained(args.checkpoint, mesh)
    tokenizer = load_tokenizer(trained.experiment.tokenizer.name)
    prompt = prompt_ids(tokenizer, generation_prompt())
    language = CompositionGrammar(tokenizer, trained.experiment.text)
    draws = CompositionSampler(
        trained.graph, trained.experiment.model, language, mesh, prompt_tokens=len(prompt), seed=0, at_once=256
    )

    def draw(number, wanted):
        asked = [CompositionRequest(index=i, prompt=prompt, wanted=wanted) for i in range(number)]
        start = time.perf_counter()
        lines = [stated.composition for stated in draws(trained.params, asked, temperature=1.0, top_p=1.0)]
        return lines, time.perf_counter() - start

    draw(256, language.anything)  # compiles
    free, seconds = draw(args.lines, language.anything)
    result = {"processor": platform.processor() or platform.machine(), "lines": args.lines, "seconds": seconds}
    for name, wanted in CONSTRAINTS.items():
        exact = [line for line in free if wanted.is_met(line) and {s for s, _ in line} <= set(wanted.elements)]
        half = len(exact) // 2
        found = {
            "exact": {"count": len(exact), "sizes": sizes(exact)},
            # What two halves of the exact answer differ by is the noise of the comparison.
            "noise": compare(exact[:half], exact[half:]),
        }
        for proposals in (1, 8, 32):
            composition._PROPOSALS = proposals
            lines, took = draw(args.constrained, wanted)
            found[f"{proposals} proposals"] = {
                "sizes": sizes(lines),
                **compare(lines, exact),
                "seconds": round(took, 1),
            }
        result[name] = found
        print(name, json.dumps(found, indent=1), flush=True)
    Path(args.output).write_text(json.dumps(result, indent=2) + "\n")


def sizes(lines):
    """Shares of compositions with one, two, ... elements."""
    counts = Counter(len(line) for line in lines)
    return {size: round(counts[size] / max(1, len(lines)), 4) for size in sorted(counts)}


def compare(lines, others):
    """Total variation distances: of numbers of elements, of numbers of atoms, and of which elements occur."""

    def distance(key):
        ours, theirs = (Counter(value for line in some for value in key(line)) for some in (lines, others))
        total = [max(1, sum(counts.values())) for counts in (ours, theirs)]
        return round(0.5 * sum(abs(ours[k] / total[0] - theirs[k] / total[1]) for k in ours | theirs), 4)

    return {
        "number of elements": distance(lambda line: [len(line)]),
        "number of atoms": distance(lambda line: [sum(n for _, n in line)]),
        "elements": distance(lambda line: [s for s, _ in line]),
    }


if __name__ == "__main__":
    main()
