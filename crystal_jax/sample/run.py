"""Writes new crystals with a trained model.

Each text is drawn under the grammar of crystals, so that every one can be read. Properties are asked for by flags, or,
many at once, by a CSV file. Samples are appended to the output directory as they are finished; the same command run
again goes on where it stopped, and --num_samples can be raised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax.errors import UserError
from crystal_jax.sample.requests import check_conditions, read_conditions
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.prompts import Conditions, generation_prompt

CONSTRAINTS = ("formula",)

# Conditions by name, and their flags.
_FLAGS = {
    "pretty_formula": "formula",
    "formation_energy_per_atom": "formation_energy_per_atom",
    "band_gap": "band_gap",
    "e_above_hull": "e_above_hull",
    "spacegroup.number": "spacegroup",
}


def define_flags(flag_values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "The workdir of a training run.", flag_values=flag_values)
    flags.DEFINE_integer("step", None, "A checkpoint's step; the last one by default.", flag_values=flag_values)
    flags.DEFINE_integer(
        "num_samples", 1000, "How many crystals there will be, for each line of --requests.", flag_values=flag_values
    )
    flags.DEFINE_float(
        "temperature", 1.0, "Lower is more likely and less diverse; 0 is greedy.", flag_values=flag_values
    )
    flags.DEFINE_float("top_p", 1.0, "Nucleus: draw from this share of the probability.", flag_values=flag_values)
    flags.DEFINE_string("formula", None, "Ask for a chemical formula, such as LiFePO4.", flag_values=flag_values)
    flags.DEFINE_integer("spacegroup", None, "Ask for a space-group number, 1 to 230.", flag_values=flag_values)
    flags.DEFINE_float(
        "e_above_hull", None, "Ask for an energy above the convex hull in eV/atom.", flag_values=flag_values
    )
    flags.DEFINE_float("band_gap", None, "Ask for a band gap in eV.", flag_values=flag_values)
    flags.DEFINE_float(
        "formation_energy_per_atom", None, "Ask for a formation energy in eV/atom.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "requests",
        None,
        "Ask for the properties in each line of this CSV file (MP-20's columns).",
        flag_values=flag_values,
    )
    flags.DEFINE_list("elements", None, "Allow these elements only, such as Li,Fe,P,O.", flag_values=flag_values)
    flags.DEFINE_list("without", None, "Forbid these elements.", flag_values=flag_values)
    flags.DEFINE_integer("min_atoms", 1, "Fewest atoms in a cell.", flag_values=flag_values)
    flags.DEFINE_integer("max_atoms", 20, "Most atoms in a cell.", flag_values=flag_values)
    flags.DEFINE_multi_enum(
        "constraints",
        [],
        CONSTRAINTS,
        "What a sample must keep to, not only the prompt. formula: its composition is a multiple of the requested one.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("batch_size", 128, "Rows decoded side by side.", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same samples.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax sample`."""
    asked = {name: value for name, flag in _FLAGS.items() if (value := flag_values[flag].value) is not None}
    requests = flag_values.requests
    if requests and asked:
        raise UserError("--requests states the properties; leave out --" + ", --".join(_FLAGS[name] for name in asked))
    path = sample(
        Path(flag_values.checkpoint),
        output=Path(flag_values.output),
        num_samples=flag_values.num_samples,
        temperature=flag_values.temperature,
        top_p=flag_values.top_p,
        conditions=read_conditions(Path(requests)) if requests else asked,
        constraints=flag_values.constraints,
        elements=flag_values.elements or ELEMENTS,
        without=flag_values.without or (),
        min_atoms=flag_values.min_atoms,
        max_atoms=flag_values.max_atoms,
        batch_size=flag_values.batch_size,
        seed=flag_values.seed,
        step=flag_values.step,
    )
    print(f"samples: {path}")


def sample(
    checkpoint: Path,
    *,
    output: Path,
    num_samples: int = 1000,
    temperature: float = 1.0,
    top_p: float = 1.0,
    conditions: Conditions | Sequence[Conditions] = (),
    constraints: Sequence[str] = (),
    elements: Sequence[str] = ELEMENTS,
    without: Sequence[str] = (),
    min_atoms: int = 1,
    max_atoms: int = 20,
    batch_size: int = 128,
    seed: int = 0,
    step: int | None = None,
) -> Path:
    """Draws crystals and returns the path of `samples.csv`.

    Args:
        checkpoint: The workdir of a training run.
        output: Directory for the samples; continued if it holds some of the same request.
        num_samples: How many there are in the end, of each of `conditions`.
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of the probability.
        conditions: Properties to ask for, by the names of `CONDITIONS`; or several such requests.
        constraints: Which of `CONSTRAINTS` every sample keeps to.
        elements: Elements that may occur.
        without: Elements that may not.
        min_atoms: Fewest atoms in the cell.
        max_atoms: Most atoms in the cell.
        batch_size: Rows decoded side by side; no influence on the samples.
        seed: Sample i depends on it and on i alone.
        step: A checkpoint's step; the last by default.

    Raises:
        UserError: no such checkpoint, an impossible setting, or an output directory of another request.
    """
    if num_samples < 1 or batch_size < 1:
        raise UserError(f"num_samples={num_samples} and batch_size={batch_size} must be positive")
    if unknown := set(constraints) - set(CONSTRAINTS):
        raise UserError(f"unknown constraints {', '.join(sorted(unknown))}; there are: {', '.join(CONSTRAINTS)}")
    # Late, so that --help and bad flags answer at once.
    from tqdm import tqdm

    from crystal_jax.checkpoint.workdir import load_trained
    from crystal_jax.config import MeshConfig
    from crystal_jax.provenance import provenance
    from crystal_jax.sample.constraints import make_limits
    from crystal_jax.sample.output import SamplesFile
    from crystal_jax.sample.scheduler import Engine, Request
    from crystal_jax.sharding import make_mesh
    from crystal_jax.text.grammar import crystal_automaton
    from crystal_jax.text.tokenizer import encode_example, load_tokenizer

    asked = [conditions] if isinstance(conditions, Mapping) else list(conditions) or [{}]
    check_conditions(asked)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    trained = load_trained(checkpoint, mesh, step=step)
    experiment = trained.experiment
    if any(asked) and not experiment.task.conditions:
        stated = dict.fromkeys(name for one in asked for name in one)
        raise UserError(f"{checkpoint} was trained without conditions, so it cannot be asked for {', '.join(stated)}")
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    allowed = [symbol for symbol in elements if symbol not in set(without)]
    try:
        automaton = crystal_automaton(tokenizer, experiment.text, max_atoms=max_atoms)
        texts = [generation_prompt(one) for one in asked]
        limits = [
            make_limits(
                elements=allowed,
                formula=_formula(one) if "formula" in constraints else None,
                min_atoms=min_atoms,
                max_atoms=max_atoms,
            )
            for one in asked
        ]
        # Tokenised as in training, where a completion always follows.
        prompts = [(tokenizer.bos_id, *encode_example(tokenizer, text, "0")[0]) for text in texts]
        Request(index=0, prompt=prompts[0], temperature=temperature, top_p=top_p)
    except ValueError as error:
        raise UserError(str(error)) from error
    request: dict[str, Any] = {
        "checkpoint": str(checkpoint.resolve()),
        "step": trained.step,
        "prompt": texts[0] if len(texts) == 1 else hashlib.sha256("\0".join(texts).encode()).hexdigest(),
        "requests": len(texts),
        "temperature": temperature,
        "top_p": top_p,
        "constraints": sorted(constraints),
        "elements": allowed if tuple(allowed) != ELEMENTS else "all",
        "min_atoms": min_atoms,
        "max_atoms": max_atoms,
        "seed": seed,
        "text_format": experiment.text.version,
        "coordinates": experiment.text.coordinates,
        "tokenizer": tokenizer.name,
    }
    samples = SamplesFile(output, request, provenance(("jax", "flax", "pymatgen"), command="sample"))
    engine = Engine(
        trained.graph,
        experiment.model,
        automaton,
        mesh=mesh,
        rows=min(batch_size, num_samples * len(asked)),
        prompt_tokens=max(map(len, prompts)),
    )
    total = num_samples * len(asked)
    done = {row["index"] for row in samples.rows()}

    def missing() -> Iterator[Request]:
        # Repetitions outermost, so that raising num_samples renames none.
        for index in range(total):
            if index not in done:
                n = index % len(asked)
                yield Request(
                    index=index, prompt=prompts[n], seed=seed, temperature=temperature, top_p=top_p, limits=limits[n]
                )

    with tqdm(total=total, initial=len(done & set(range(total))), desc="sample", unit="crystal") as bar:
        for drawn in engine.run(trained.params, missing()):
            index = drawn.request.index
            n = index % len(asked)
            text = tokenizer.decode(list(drawn.request.prompt[1:] + drawn.ids)).removeprefix(texts[n])
            experiment.text.decode(text)  # cannot fail: the grammar admits readable texts only
            row = {
                "index": index,
                "prompt": texts[n],
                "text": text,
                "tokens": len(drawn.ids) + 1,
                "log_prob": drawn.log_prob,
                "log_kept": drawn.log_kept,
            }
            samples.append([row])
            bar.update()
    name = f"{checkpoint.resolve().name}-step{trained.step}"
    return samples.finish(experiment.text, limit=total, model_name=name)


def _formula(conditions: Conditions) -> str:
    if not (formula := conditions.get("pretty_formula")):
        raise ValueError("the constraint 'formula' needs a requested formula")
    return str(formula)
