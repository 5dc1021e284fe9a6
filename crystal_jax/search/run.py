"""Searches for crystals of high reward.

The method is Monte-Carlo tree search with the model's probabilities as the prior. The reward is validity, or minus the
energy per atom of the unrelaxed crystal by an energy model. Limits and hints are those of crystal-jax sample. If the
model's texts start with a composition line, the search is over structures of one composition, which is drawn first, by
--seed, within the limits.

The outputs are those of crystal-jax sample; samples.jsonl holds every finished crystal, the best first, and samples.csv
the best --num_samples.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import flags

from crystal_jax import arguments
from crystal_jax.checkpoint.model_flags import ALL_ON_DATA, define_model_flags, mesh_of, step_of
from crystal_jax.errors import UserError
from crystal_jax.sample.request_flags import MAX_ATOMS, check_numbers, define_request_flags, hints_in, limits_in
from crystal_jax.sample.requests import FORMULA, parse_request
from crystal_jax.storage.files import is_new
from crystal_jax.text.crystal_text import Crystal
from crystal_jax.text.prompts import Conditions

Reward = Callable[[Crystal], float]
_WORST_ENERGY = 10.0  # eV/atom; upper bound of the energy, also used for invalid structures


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of the command."""
    define_model_flags(flag_values)
    flags.DEFINE_string(
        "reward", "validity", "validity, or an energy model: m3gnet, chgnet, matgl:NAME.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "budget", 10_000, "Model calls; a sampled crystal takes one for each of its tokens.", flag_values=flag_values
    )
    flags.DEFINE_integer("num_samples", 20, "How many of the best go into samples.csv.", flag_values=flag_values)
    define_request_flags(flag_values)
    flags.DEFINE_float(
        "exploration", 1.0, "Weight of the model's probabilities against rewards.", flag_values=flag_values
    )
    flags.DEFINE_float("temperature", 1.0, "Of what is written beyond the tree; 0 is greedy.", flag_values=flag_values)
    flags.DEFINE_integer("batch_size", 16, "Crystals written side by side.", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "The same seed finds the same crystals.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Runs `crystal-jax search`."""
    path = search(
        flag_values.checkpoint,
        output=Path(flag_values.output),
        reward=named_reward(flag_values.reward),
        reward_name=flag_values.reward,
        budget=flag_values.budget,
        num_samples=flag_values.num_samples,
        conditions=hints_in(flag_values),
        **limits_in(flag_values),
        exploration=flag_values.exploration,
        temperature=flag_values.temperature,
        width=flag_values.batch_size,
        seed=flag_values.seed,
        step=step_of(flag_values),
        mesh=flag_values.mesh,
    )
    print(f"samples: {path}")


def search(
    checkpoint: str | Path,
    *,
    output: str | Path,
    reward: Reward,
    reward_name: str,
    budget: int = 10_000,
    num_samples: int = 20,
    conditions: Conditions | None = None,
    chemical_system: str | Sequence[str] | None = None,
    elements: Sequence[str] | None = None,
    exclude_elements: Sequence[str] | None = None,
    min_elements: int | None = None,
    max_elements: int | None = None,
    min_atoms: int | None = None,
    max_atoms: int = MAX_ATOMS,
    exploration: float = 1.0,
    temperature: float = 1.0,
    width: int = 16,
    seed: int = 0,
    step: int | Literal["best"] | None = None,
    mesh: str = ALL_ON_DATA,
) -> Path:
    """Searches for crystals of high reward and returns the path of `samples.csv`, the best first.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        output: A new directory.
        reward: Maps a crystal to its reward, a finite number.
        reward_name: Name of the reward, recorded in `run.json`.
        budget: Number of model calls.
        num_samples: Number of the best crystals that are written to `samples.csv`.
        conditions: Conditions of the prompt, by the names of `CONDITIONS`. A formula is enforced, too.
        chemical_system: Elements that must all occur, and no others: "Li-P-S".
        elements: Elements that may occur; all by default.
        exclude_elements: Elements that must not occur.
        min_elements: Minimum number of distinct elements.
        max_elements: Maximum number of distinct elements.
        min_atoms: Minimum number of atoms in the cell.
        max_atoms: Maximum number of atoms in the cell.
        exploration: Weight of the model's probabilities against rewards: c in `search/tree.py`.
        temperature: Temperature of the tokens that complete a prefix, and of the composition line.
        width: Crystals decoded side by side.
        seed: Random seed; the same seed finds the same crystals.
        step: Step of the checkpoint, or "best"; the last one by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`); no influence on the results.

    Raises:
        UserError: no such checkpoint, an impossible setting, a reward that is not finite, or an output directory that
            is not empty.
    """
    if not 0 <= temperature < float("inf") or not 0 <= exploration < float("inf"):
        raise UserError(f"temperature={temperature} and exploration={exploration} must be finite and not negative")
    output = arguments.path("output", output)
    check_numbers(num_samples=num_samples, budget=budget, width=width, max_atoms=max_atoms, seed=seed)
    asked = parse_request(conditions or {})
    given = dict(
        chemical_system=chemical_system,
        elements=elements,
        exclude_elements=exclude_elements,
        min_elements=min_elements,
        max_elements=max_elements,
        min_atoms=min_atoms,
        max_atoms=max_atoms,
    )
    limits = dict(parse_request(given))
    if not is_new(output):
        raise UserError(f"{output} is not empty, and a search is not continued; choose another --output")
    # Imported late, so that --help and bad flags answer at once.
    import numpy as np
    from tqdm import tqdm

    from crystal_jax.checkpoint.models import load_for_inference
    from crystal_jax.checkpoint.pretrained import locate
    from crystal_jax.provenance import provenance
    from crystal_jax.sample.constraints.rules import Rules, merged_with
    from crystal_jax.sample.sample_spec import SampleSpecBuilder
    from crystal_jax.sample.samples_file import SamplesFile
    from crystal_jax.search.tree import Search
    from crystal_jax.text.grammar.crystal import crystal_automaton
    from crystal_jax.text.tokenizer import completion_text, load_tokenizer

    devices = mesh_of(mesh)
    trained = load_for_inference(checkpoint, devices, step=step)
    experiment = trained.experiment
    if asked and not experiment.task.conditions:
        raise UserError(f"{checkpoint} was trained without conditions, so it cannot be asked for {', '.join(asked)}")
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    try:
        rules = merged_with(Rules(max_atoms=max_atoms), limits)
        automaton = crystal_automaton(tokenizer, experiment.text, max_atoms=max_atoms)
        questions = SampleSpecBuilder([asked], rules, automaton, tokenizer, experiment.text)
    except ValueError as error:
        raise UserError(str(error)) from error
    compositions = questions.make_compositions(trained.graph, experiment.model, devices, seed=seed, at_once=32)
    state = None
    if compositions:
        state = functools.partial(compositions, trained.params, temperature=temperature, top_p=1.0)
    elif questions.draws_formulas:
        raise UserError(
            f"{checkpoint} writes no composition first: to search for {', '.join(asked)}, give a --formula as well"
        )
    ((_, question),) = questions([0], state)
    if question.stated is not None and not question.stated.admitted:
        raise UserError("the model states no composition within the limits in 1,000 attempts; ask for less")
    prompt, head = question.text, question.head
    request: dict[str, Any] = {
        "checkpoint": str(locate(checkpoint).resolve()),
        "step": trained.step,
        "prompt": prompt,
        "reward": reward_name,
        "budget": budget,
        "limits": dict(limits) | ({"formula": "the requested one"} if FORMULA in asked else {}),
        "hints": [name for name in asked if name != FORMULA],
        "exploration": exploration,
        "temperature": temperature,
        "width": width,
        "seed": seed,
        "text_format": experiment.text.version,
        "coordinates": experiment.text.coordinates,
        "tokenizer": tokenizer.name,
    }

    def text_of(ids: tuple[int, ...]) -> str:
        return completion_text(tokenizer, prompt, head, ids)

    def judge(ids: tuple[int, ...]) -> float:
        value = reward(experiment.text.decode(text_of(ids)))
        if not np.isfinite(value):
            raise UserError(f"the reward {reward_name} is {value} of\n{text_of(ids)}")
        return value

    tree = Search(
        trained.graph,
        experiment.model,
        automaton,
        mesh=devices,
        prompt=head,
        width=width,
        exploration=exploration,
        temperature=temperature,
        limits=question.limits,
    )
    samples = SamplesFile(output, request, provenance(("jax", "flax", "pymatgen"), command="search"))
    best: dict[str, dict[str, Any]] = {}
    with tqdm(total=budget, desc="search", unit="call") as bar:
        for found in tree.run(trained.params, judge, budget=budget, seed=seed):
            text = text_of(found.ids)
            best.setdefault(text, {"reward": found.reward, "calls": found.calls, "text": text})
            bar.update(found.calls - bar.n)
    ranked = sorted(best.values(), key=lambda row: -row["reward"])
    system = {"chemical_system": limits["chemical_system"]} if "chemical_system" in limits else {}
    facts = {"status": "complete", "prompt": prompt, "request": system | dict(asked)}
    samples.append({"index": index, **facts, **row} for index, row in enumerate(ranked))
    return samples.finish(experiment.text, limit=num_samples, model_name=trained.name)


def named_reward(name: str) -> Reward:
    """Returns a reward by name: `validity`, or the name of an energy model.

    `validity` is the mean of two tests, so 0, ½ or 1: the structure is valid and plausible, and the composition is
    valid. The reward of an energy model is minus the energy per atom in eV, unrelaxed, and at least -10; it is -10 if
    the structure is not valid and plausible, or has elements that the model does not cover.

    Raises:
        UserError: there is no such energy model.
    """
    from pymatgen.core import Composition

    from crystal_jax.energy.model import Cell, load_model
    from crystal_jax.evaluate.oxidation import load_oxidation_table
    from crystal_jax.evaluate.validity import (
        compositional_invalid_reason,
        implausible_reason,
        structural_invalid_reason,
    )
    from crystal_jax.suppress_warnings import quiet

    def is_structure(crystal: Crystal) -> bool:
        if not crystal.forms_cell:
            return False
        structure = crystal.to_structure()
        return structural_invalid_reason(structure) is None and implausible_reason(structure) is None

    if name == "validity":
        table = load_oxidation_table()

        @quiet()
        def validity(crystal: Crystal) -> float:
            balanced = compositional_invalid_reason(Composition(Counter(crystal.symbols)), table) is None
            return (is_structure(crystal) + balanced) / 2

        return validity
    model = load_model(name)

    @quiet()
    def stability(crystal: Crystal) -> float:
        if not is_structure(crystal) or any(site.specie.Z not in model.elements for site in crystal.to_structure()):
            return -_WORST_ENERGY
        (prediction,) = model.predict([Cell.of(crystal.to_structure())])
        return max(-prediction.energy / len(crystal.symbols), -_WORST_ENERGY)

    return stability
