"""Writes new crystals with a trained model.

Each text is drawn under the grammar of crystals, so that every one can be read. Properties are asked for by flags, or,
many at once, by a CSV file; what samples must keep to, and not only be asked for, is said by --constraints. Samples are
appended to the output directory as they are finished; the same command run again goes on where it stopped, and
--num_samples can be raised.

Several temperatures, or several shares --top_p, are one job: each pair has a folder of its own in the output directory.

On a pod the same command runs on every host, with --distributed, and the output lies on a disk that all of them see.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from absl import flags

from crystal_jax import processes
from crystal_jax.errors import UserError
from crystal_jax.sample.requests import LIMITS, Asked, check_requests, conditions_of, read_requests
from crystal_jax.text.crystal_text import ELEMENTS

if TYPE_CHECKING:
    from crystal_jax.sample.answers import Answer

REDRAWS = 8
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
    flags.DEFINE_string(
        "checkpoint", None, "A workdir, an exported folder, or a released model: crystal-tiny.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "step", None, "A checkpoint's step, or 'best'; the last one by default.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "num_samples", 1000, "How many crystals there will be, for each line of --requests.", flag_values=flag_values
    )
    flags.DEFINE_list(
        "temperature",
        ["1.0"],
        "Lower is more likely and less diverse; 0 is greedy. 0.7,1.0 draws with both.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "top_p", ["1.0"], "Nucleus: draw from this share of the probability; or several.", flag_values=flag_values
    )
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
        "Ask for what each line of this CSV file says: properties in MP-20's columns, which are wishes; elements, "
        "without, min_atoms, max_atoms, constraints, which are kept to, beside the flags of these names.",
        flag_values=flag_values,
    )
    flags.DEFINE_list("elements", None, "Allow these elements only, such as Li,Fe,P,O.", flag_values=flag_values)
    flags.DEFINE_list("without", None, "Forbid these elements.", flag_values=flag_values)
    flags.DEFINE_integer("min_atoms", 1, "Fewest atoms in a cell.", flag_values=flag_values)
    flags.DEFINE_integer("max_atoms", 20, "Most atoms in a cell.", flag_values=flag_values)
    flags.DEFINE_list(
        "constraints",
        [],
        "What samples keep to, of: formula (their composition is a multiple of the requested one), charge (charges can "
        "balance), distance (the angles form a cell, and atoms keep their distance), lattice (of the requested space "
        "group's lattice system).",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "oxidation_states", "smact14", ["smact14", "icsd24"], "The table for charge.", flag_values=flag_values
    )
    flags.DEFINE_float("min_distance", 0.5, "Between atoms in Å, for distance.", flag_values=flag_values)
    flags.DEFINE_float(
        "min_radii", 0.0, "Or this share of the sum of their covalent radii, if more.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "redraws",
        REDRAWS,
        "How often a crystal is begun again that does not keep to its composition, to --constraints or to the order of "
        "its sites by itself, before another composition is tried. 0: it is made to at once, the order aside.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("batch_size", 128, "Rows decoded side by side.", flag_values=flag_values)
    flags.DEFINE_enum(
        "kv_cache",
        "model",
        ["model", "int8"],
        "Keep keys and values in the model's type, or in 8 bits: of long texts in bfloat16, twice as many rows fit.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer("seed", 0, "The same seed gives the same samples.", flag_values=flag_values)
    flags.DEFINE_string(
        "mesh", "-1,1,1", "Devices along the axes data, fsdp, tensor; -1 is all the others.", flag_values=flag_values
    )
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flags.DEFINE_bool("extxyz", False, "Write samples.extxyz as well.", flag_values=flag_values)
    processes.define_flags(flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax sample`."""
    asked = {name: value for name, flag in _FLAGS.items() if (value := flag_values[flag].value) is not None}
    requests = flag_values.requests
    if requests and asked:
        raise UserError("--requests states the properties; leave out --" + ", --".join(_FLAGS[name] for name in asked))
    step = flag_values.step
    if step is not None and step != "best" and not step.isdecimal():
        raise UserError(f"--step={step} is neither a number nor 'best'")
    processes.join_if_asked(flag_values)
    path = sample(
        flag_values.checkpoint,
        output=Path(flag_values.output),
        num_samples=flag_values.num_samples,
        temperature=_numbers("temperature", flag_values.temperature),
        top_p=_numbers("top_p", flag_values.top_p),
        conditions=read_requests(Path(requests)) if requests else asked,
        constraints=flag_values.constraints,
        elements=flag_values.elements or ELEMENTS,
        without=flag_values.without or (),
        min_atoms=flag_values.min_atoms,
        max_atoms=flag_values.max_atoms,
        oxidation_states=flag_values.oxidation_states,
        min_distance=flag_values.min_distance,
        min_radii=flag_values.min_radii,
        redraws=flag_values.redraws,
        batch_size=flag_values.batch_size,
        kv_cache=flag_values.kv_cache,
        seed=flag_values.seed,
        step="best" if step == "best" else None if step is None else int(step),
        mesh=flag_values.mesh,
        extxyz=flag_values.extxyz,
    )
    if processes.is_first():
        print(f"samples: {path}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _numbers(flag: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError:
        raise UserError(f"--{flag}={','.join(texts)} is no list of numbers") from None


def sample(
    checkpoint: str | Path,
    *,
    output: Path,
    num_samples: int = 1000,
    temperature: float | Sequence[float] = 1.0,
    top_p: float | Sequence[float] = 1.0,
    conditions: Asked | Sequence[Asked] = (),
    constraints: Sequence[str] = (),
    elements: Sequence[str] = ELEMENTS,
    without: Sequence[str] = (),
    min_atoms: int = 1,
    max_atoms: int = 20,
    oxidation_states: str = "smact14",
    min_distance: float = 0.5,
    min_radii: float = 0.0,
    redraws: int = REDRAWS,
    batch_size: int = 128,
    kv_cache: Literal["model", "int8"] = "model",
    seed: int = 0,
    step: int | Literal["best"] | None = None,
    mesh: str = "-1,1,1",
    extxyz: bool = False,
) -> Path:
    """Draws crystals and returns the path of `samples.csv`; with several temperatures or top_p, that of `output`.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        output: Directory for the samples; continued if it holds some of the same request.
        num_samples: How many there are in the end, of each of `conditions`.
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of the probability.
        conditions: Properties to ask for, by the names of `CONDITIONS`; or several such requests. A request may also
            have elements, without, min_atoms, max_atoms and constraints of its own, which add to those below.
        constraints: Which of `CONSTRAINTS` in `sample/rules.py` every sample keeps to.
        elements: Elements that may occur.
        without: Elements that may not.
        min_atoms: Fewest atoms in the cell.
        max_atoms: Most atoms in the cell.
        oxidation_states: The table for the constraint `charge`: smact14 or icsd24.
        min_distance: For the constraint `distance`, in Å.
        min_radii: For it, too: or this share of the sum of two covalent radii, if that is more.
        redraws: How often a crystal is begun again that does not keep to its rules, or to the order of its sites, by
            itself, before another composition is tried; see sample/answers.py. 0: it is made to keep to them at once.
        batch_size: Rows decoded side by side; no influence on the samples.
        kv_cache: Keep keys and values in the model's type or, rounded, in 8 bits.
        seed: Sample i depends on it and on i alone.
        step: A checkpoint's step, or the best one; the last by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`); no influence on the samples.
        extxyz: Write `samples.extxyz` as well.

    Raises:
        UserError: no such checkpoint, an impossible setting, or an output directory of another request.
    """
    if num_samples < 1 or batch_size < 1 or redraws < 0:
        raise UserError(
            f"num_samples={num_samples} and batch_size={batch_size} must be positive, redraws={redraws} not negative"
        )
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.checkpoint.models import load_trained
    from crystal_jax.checkpoint.released import locate
    from crystal_jax.config import MeshConfig
    from crystal_jax.sample.answers import answers
    from crystal_jax.sample.job import Job
    from crystal_jax.sample.questions import Questions
    from crystal_jax.sample.rules import Rules, allowed_elements
    from crystal_jax.sample.scheduler import Engine
    from crystal_jax.sample.texts import Request
    from crystal_jax.sharding import make_mesh
    from crystal_jax.text.grammar import crystal_automaton
    from crystal_jax.text.tokenizer import completion_text, load_tokenizer

    asked = [conditions] if isinstance(conditions, Mapping) else list(conditions) or [{}]
    check_requests(asked)
    try:
        devices = make_mesh(MeshConfig.parse(mesh))
    except ValueError as error:
        raise UserError(str(error)) from error
    trained = load_trained(checkpoint, devices, step=step)
    experiment = trained.experiment
    if (
        names := dict.fromkeys(name for one in asked for name in conditions_of(one))
    ) and not experiment.task.conditions:
        raise UserError(f"{checkpoint} was trained without conditions, so it cannot be asked for {', '.join(names)}")
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    settings = list(itertools.product(*(v if isinstance(v, Sequence) else [v] for v in (temperature, top_p))))
    try:
        rules = Rules(
            constraints=frozenset(constraints),
            elements=allowed_elements(elements, without),
            min_atoms=min_atoms,
            max_atoms=max_atoms,
            oxidation_states=oxidation_states,
            min_distance=min_distance,
            min_radii=min_radii,
        )
        automaton = crystal_automaton(tokenizer, experiment.text, max_atoms=max_atoms)
        questions = Questions(asked, rules, automaton, tokenizer, experiment.text)
        for t, p in settings:
            Request(index=0, prompt=(), temperature=t, top_p=p)
    except ValueError as error:
        raise UserError(str(error)) from error
    compositions = questions.make_compositions(trained.graph, experiment.model, devices, seed=seed)
    texts, used = questions.texts, questions.constraints
    own = [{name: value for name, value in one.items() if name in LIMITS} for one in asked]
    request: dict[str, Any] = {
        "checkpoint": str(locate(checkpoint).resolve()),
        "step": trained.step,
        "prompt": texts[0] if len(texts) == 1 else _digest("\0".join(texts)),
        "requests": len(texts),
        "limits": _digest(json.dumps(own)) if any(own) else None,
        "constraints": sorted(constraints),
        "oxidation_states": oxidation_states if "charge" in used else None,
        "min_distance": min_distance if "distance" in used else None,
        "min_radii": min_radii if "distance" in used else None,
        "elements": rules.elements if rules.elements != ELEMENTS else "all",
        "min_atoms": min_atoms,
        "max_atoms": max_atoms,
        "redraws": redraws,
        "kv_cache": kv_cache,
        "seed": seed,
        "text_format": experiment.text.version,
        "coordinates": experiment.text.coordinates,
        "tokenizer": tokenizer.name,
        "site_order": experiment.task.order,
    }
    total = num_samples * len(asked)
    engine = Engine(
        trained.graph,
        experiment.model,
        automaton,
        mesh=devices,
        rows=min(batch_size, total),
        prompt_tokens=questions.head_tokens,
        coded=kv_cache == "int8",
        sorted_sites=experiment.task.order == "sorted",
    )

    def row(answer: Answer) -> dict[str, Any]:
        question, drawn, dead_ends = answer
        text = completion_text(tokenizer, question.text, question.head, drawn.ids)
        log_probs, log_kept = question.log_probs(drawn)
        if drawn.complete:
            experiment.text.decode(text)  # cannot fail: the grammar admits readable texts only
        return {
            "index": drawn.request.index,
            "status": "complete" if drawn.complete else "dead end",
            "request": dict(question.asked),
            "seed": seed,
            "prompt": question.text,
            "text": text,
            "tokens": len(question.head) - len(question.prompt) + len(drawn.ids) + 1,
            "log_prob": round(sum(log_probs), 4),
            "token_log_probs": [round(value, 4) for value in log_probs],
            "log_kept": round(log_kept, 4),
            "dead_ends": dead_ends,
            "constraints": sorted(question.rules.constraints),
            "checkpoint": trained.name,
            "text_format": experiment.text.version,
        }

    written: list[Path] = []
    for t, p in settings:
        folder = output / f"temperature={t},top_p={p}" if len(settings) > 1 else output
        job = Job(folder, {**request, "temperature": t, "top_p": p}, total=total)
        found = answers(
            engine,
            trained.params,
            questions,
            compositions,
            job.missing,
            seed=seed,
            temperature=t,
            top_p=p,
            redraws=redraws,
        )
        with contextlib.closing(found):  # a full disk ends the threads that draw, too
            job.write(map(row, found))
        written.append(job.finish(experiment.text, model_name=trained.name, extxyz=extxyz))
    return written[0] if len(written) == 1 else output
