"""Writes new crystals with a trained model.

Each text is drawn under the grammar of crystals, so that every one can be read. What you ask for is of two kinds:

  limits   kept to by every sample, exactly: --formula, --chemical_system, --elements, --exclude_elements, numbers of
           atoms and elements, and --constraints
  hints    stand in the prompt, and the model follows them more or less: --spacegroup, --e_above_hull, --band_gap,
           --formation_energy_per_atom; with --hints_only the formula, too

Where a hint is given without a formula, the model first draws formulas as it does without any request, under the
limits, and is then asked for formula and hints together. Many requests at once come from a CSV file (--requests).

Samples are appended to the output directory as they are finished; the same command run again goes on where it stopped,
and --num_samples can be raised. Several temperatures, or several shares --top_p, are one job: each pair has a folder of
its own in the output directory.

On a pod the same command runs on every host, with --distributed, and the output lies on a disk that all of them see.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from absl import flags

from crystal_jax import arguments, processes
from crystal_jax.checkpoint.model_flags import ALL_ON_DATA, define_model_flags, mesh_of, step_of
from crystal_jax.errors import UserError
from crystal_jax.provenance import command_line
from crystal_jax.sample.request_flags import (
    HINT_FLAGS,
    MAX_ATOMS,
    check_numbers,
    define_request_flags,
    hints_in,
    limits_in,
)
from crystal_jax.sample.requests import (
    CONSTRAINT_COLUMNS,
    FORMULA,
    NAME,
    Asked,
    conditions_of,
    parse_request,
    parse_requests,
    read_requests,
)

if TYPE_CHECKING:
    from crystal_jax.sample.engine.request import Completion
    from crystal_jax.sample.rejection import SampleResult
    from crystal_jax.sample.sample_spec import SampleSpec

MAX_RETRIES = 8
MIN_RADIUS_FACTOR = 0.7  # of evaluate/validity.py, which is not imported for --help


def define_flags(flag_values: flags.FlagValues) -> None:
    """The command's flags."""
    define_model_flags(flag_values)
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
    define_request_flags(flag_values)
    flags.DEFINE_string(
        "requests",
        None,
        "Ask for what each line of this CSV file says. Columns: hints by MP-20's names (pretty_formula, "
        f"spacegroup.number, ...); limits ({', '.join(CONSTRAINT_COLUMNS)}), in addition to the flags of these names; "
        "name.",
        flag_values=flag_values,
    )
    flags.DEFINE_bool(
        "hints_only",
        False,
        "A formula that you ask for is a hint as well: the composition need not be a multiple of it.",
        flag_values=flag_values,
    )
    flags.DEFINE_list(
        "constraints",
        None,
        "Limits, of: charge (charges can balance), distance (the angles form a cell, atoms keep the distance that "
        "their radii ask for, and the cell is not mostly empty), lattice (of the requested space group's lattice "
        "system), formula (kept to anyway); or none. By default distance, where texts have fractional coordinates.",
        flag_values=flag_values,
    )
    flags.DEFINE_enum(
        "oxidation_states", "smact14", ["smact14", "icsd24"], "The table for charge.", flag_values=flag_values
    )
    flags.DEFINE_float("min_distance", 0.5, "For distance: between atoms, in Å.", flag_values=flag_values)
    flags.DEFINE_float(
        "min_radius_factor",
        MIN_RADIUS_FACTOR,
        "For distance: or this share of the sum of their covalent radii, if that is more. 0: --min_distance alone "
        "counts, and cells may be as empty as they like.",
        flag_values=flag_values,
    )
    flags.DEFINE_integer(
        "max_retries",
        MAX_RETRIES,
        "How often a crystal that breaks its composition, a constraint or the order of its sites is begun again "
        "before another composition is tried. 0: it is forced to keep its composition and constraints from the start.",
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
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flags.DEFINE_bool("extxyz", False, "Write samples.extxyz as well.", flag_values=flag_values)
    processes.define_flags(flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax sample`."""
    asked = hints_in(flag_values)
    requests = flag_values.requests
    if requests and asked:
        raise UserError(
            "--requests states the properties; leave out --" + ", --".join(HINT_FLAGS[name] for name in asked)
        )
    step = step_of(flag_values)
    processes.join_if_asked(flag_values)
    path = sample(
        flag_values.checkpoint,
        output=Path(flag_values.output),
        num_samples=flag_values.num_samples,
        temperature=_numbers("temperature", flag_values.temperature),
        top_p=_numbers("top_p", flag_values.top_p),
        conditions=read_requests(Path(requests)) if requests else asked,
        constraints=flag_values.constraints,
        **limits_in(flag_values),
        hints_only=flag_values.hints_only,
        oxidation_states=flag_values.oxidation_states,
        min_distance=flag_values.min_distance,
        min_radius_factor=flag_values.min_radius_factor,
        max_retries=flag_values.max_retries,
        batch_size=flag_values.batch_size,
        kv_cache=flag_values.kv_cache,
        seed=flag_values.seed,
        step=step,
        mesh=flag_values.mesh,
        extxyz=flag_values.extxyz,
        command=command_line("sample", flag_values),
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
    output: str | Path,
    num_samples: int = 1000,
    temperature: float | Sequence[float] = 1.0,
    top_p: float | Sequence[float] = 1.0,
    conditions: Asked | Sequence[Asked] = (),
    constraints: Sequence[str] | None = None,
    chemical_system: str | Sequence[str] | None = None,
    elements: Sequence[str] | None = None,
    exclude_elements: Sequence[str] | None = None,
    min_elements: int | None = None,
    max_elements: int | None = None,
    min_atoms: int | None = None,
    max_atoms: int = MAX_ATOMS,
    hints_only: bool = False,
    oxidation_states: str = "smact14",
    min_distance: float = 0.5,
    min_radius_factor: float = MIN_RADIUS_FACTOR,
    max_retries: int = MAX_RETRIES,
    batch_size: int = 128,
    kv_cache: Literal["model", "int8"] = "model",
    seed: int = 0,
    step: int | Literal["best"] | None = None,
    mesh: str = ALL_ON_DATA,
    extxyz: bool = False,
    command: str = "sample",
) -> Path:
    """Draws crystals and returns the path of `samples.csv`; with several temperatures or top_p, that of `output`.

    Args:
        checkpoint: A workdir, an exported folder, or the name of a released model.
        output: Directory for the samples; continued if it holds some of the same request.
        num_samples: How many there are in the end, of each of `conditions`.
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: Draw from the smallest set of tokens that holds this share of the probability.
        conditions: Properties to ask for, by the names of `CONDITIONS`; or several such requests. A request may also
            have limits of its own, by the names of `CONSTRAINT_COLUMNS` in `sample/requests.py`, which add to those
            below. A space group is a number or a symbol.
        constraints: Which of `CONSTRAINTS` in `sample/constraints/rules.py` every sample satisfies. The default is
            `distance`, unless texts have Cartesian coordinates or the tokenizer joins numbers; () or "none" is none.
        chemical_system: Elements that all occur, and no others: "Li-P-S".
        elements: Elements that may occur; all by default.
        exclude_elements: Elements that may not.
        min_elements: Fewest different elements.
        max_elements: Most different elements.
        min_atoms: Fewest atoms in the cell.
        max_atoms: Most atoms in the cell.
        hints_only: A requested formula is a hint, as properties are; by default the composition is a multiple of it.
        oxidation_states: The table for the constraint `charge`: smact14 or icsd24.
        min_distance: For the constraint `distance`, in Å.
        min_radius_factor: For the constraint `distance`, too: this share of the sum of two covalent radii, if that is
            more. With 0, the volume of the cell is not limited either.
        max_retries: How often a sample that violates its constraints, or the order of its sites, is retried before a
            new composition is drawn (`sample/rejection.py`). 0: the constraints are enforced by masking from the start.
        batch_size: Slots decoded side by side; no influence on the samples.
        kv_cache: Keep keys and values in the model's type or, rounded, in 8 bits.
        seed: Sample i depends on it and on i alone.
        step: A checkpoint's step, or the best one; the last by default.
        mesh: Devices along the axes data, fsdp and tensor (`MeshConfig.parse`); no influence on the samples.
        extxyz: Write `samples.extxyz` as well.
        command: The command line that asked for it, for `run.json` and reports.

    Raises:
        UserError: no such checkpoint, an impossible setting, or an output directory of another request.
    """
    output = arguments.path("output", output)
    if constraints is not None:
        constraints = [name for name in arguments.words("constraints", constraints) if name != "none"]
    check_numbers(
        num_samples=num_samples, batch_size=batch_size, max_retries=max_retries, max_atoms=max_atoms, seed=seed
    )
    asked = parse_requests(conditions)
    given = dict(
        chemical_system=chemical_system,
        elements=elements,
        exclude_elements=exclude_elements,
        min_elements=min_elements,
        max_elements=max_elements,
        min_atoms=min_atoms,
        max_atoms=max_atoms if max_atoms != MAX_ATOMS else None,
    )
    limits = dict(parse_request(given))
    # Late, so that --help and bad flags answer at once.
    from crystal_jax.checkpoint.models import load_for_inference
    from crystal_jax.checkpoint.pretrained import locate
    from crystal_jax.sample.constraints.rules import Rules, merged_with
    from crystal_jax.sample.engine.request import GenerationRequest
    from crystal_jax.sample.engine.scheduler import Engine
    from crystal_jax.sample.rejection import draw_samples
    from crystal_jax.sample.sample_spec import SampleSpecBuilder
    from crystal_jax.sample.writer import SampleWriter
    from crystal_jax.text.grammar.crystal import crystal_automaton
    from crystal_jax.text.tokenizer import completion_text, load_tokenizer

    devices = mesh_of(mesh)
    trained = load_for_inference(checkpoint, devices, step=step)
    experiment = trained.experiment
    hints = list(dict.fromkeys(name for one in asked for name in conditions_of(one)))
    if hints and not experiment.task.conditions:
        raise UserError(f"{checkpoint} was trained without conditions, so it cannot be asked for {', '.join(hints)}")
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    settings = list(itertools.product(arguments.numbers("temperature", temperature), arguments.numbers("top_p", top_p)))
    try:
        automaton = crystal_automaton(tokenizer, experiment.text, max_atoms=max_atoms)
        if constraints is None:
            has_distances = automaton.separate and experiment.text.coordinates == "fractional"
            constraints = ["distance"] if has_distances else []
        rules = Rules(
            constraints=frozenset(constraints),
            max_atoms=max_atoms,
            oxidation_states=oxidation_states,
            min_distance=min_distance,
            min_radius_factor=min_radius_factor,
            hints_only=hints_only,
        )
        rules = merged_with(rules, limits)
        questions = SampleSpecBuilder(asked, rules, automaton, tokenizer, experiment.text)
        for t, p in settings:
            GenerationRequest(index=0, prompt=(), temperature=t, top_p=p)
    except ValueError as error:
        raise UserError(str(error)) from error
    compositions = questions.make_compositions(trained.graph, experiment.model, devices, seed=seed)
    texts, used = questions.texts, questions.constraints
    system = {"chemical_system": limits["chemical_system"]} if "chemical_system" in limits else {}
    own = [{name: value for name, value in one.items() if name in CONSTRAINT_COLUMNS} for one in asked]
    request: dict[str, Any] = {
        "checkpoint": str(locate(checkpoint).resolve()),
        "step": trained.step,
        "prompt": texts[0] if len(texts) == 1 else _digest("\0".join(texts)),
        "requests": len(texts),
        # What every sample keeps to, and what only stands in the prompt.
        "limits": dict(limits) | ({"formula": "the requested one"} if FORMULA in hints and not hints_only else {}),
        "hints": [name for name in hints if name != FORMULA or hints_only],
        "limits_of_requests": _digest(json.dumps(own)) if any(own) else None,
        "constraints": sorted(constraints),
        "oxidation_states": oxidation_states if "charge" in used else None,
        "min_distance": min_distance if "distance" in used else None,
        "min_radius_factor": min_radius_factor if "distance" in used else None,
        "max_atoms": max_atoms,
        "max_retries": max_retries,
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

    def text_of(question: SampleSpec, drawn: Completion) -> str:
        return completion_text(tokenizer, question.text, question.head, drawn.ids)

    def row(answer: SampleResult) -> dict[str, Any]:
        question, drawn, num_restarts = answer
        text = text_of(question, drawn)
        log_probs, log_allowed_mass = question.log_probs(drawn)
        if drawn.complete:
            experiment.text.decode(text)  # cannot fail: the grammar admits readable texts only
        return {
            "index": drawn.request.index,
            "status": "complete" if drawn.complete else "dead end",
            "request": {name: value for name, value in (system | dict(question.asked)).items() if name != NAME},
            "request_number": questions.number_of(drawn.request.index),
            "request_name": question.asked.get(NAME, ""),
            "seed": seed,
            "prompt": question.text,
            "text": text,
            "tokens": len(question.head) - len(question.prompt) + len(drawn.ids) + 1,
            "log_prob": round(sum(log_probs), 4),
            "token_log_probs": [round(value, 4) for value in log_probs],
            "log_allowed_mass": round(log_allowed_mass, 4),
            "num_restarts": num_restarts,
            "constraints": sorted(question.rules.constraints),
            "checkpoint": trained.name,
            "text_format": experiment.text.version,
        }

    written: list[Path] = []
    for t, p in settings:
        folder = output / f"temperature={t},top_p={p}" if len(settings) > 1 else output
        job = SampleWriter(folder, {**request, "temperature": t, "top_p": p}, total=total, command=command)
        found = draw_samples(
            engine,
            trained.params,
            questions,
            compositions,
            job.missing,
            symbols_of=lambda question, drawn: experiment.text.decode(text_of(question, drawn)).symbols,
            seed=seed,
            temperature=t,
            top_p=p,
            max_retries=max_retries,
        )
        with contextlib.closing(found):  # a full disk ends the threads that draw, too
            job.write(map(row, found))
        written.append(job.finish(experiment.text, model_name=trained.name, extxyz=extxyz))
    return written[0] if len(written) == 1 else output
