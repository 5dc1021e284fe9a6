"""Writes new crystals with a trained model.

Each text is drawn under the grammar of crystals, so that every one can be read. Samples are appended to the output
directory as they are finished; the same command run again goes on where it stopped, and --num_samples can be raised.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from crystal_jax.errors import UserError
from crystal_jax.text.crystal_text import ELEMENTS
from crystal_jax.text.prompts import Conditions, generation_prompt


def define_flags(flag_values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "The workdir of a training run.", flag_values=flag_values)
    flags.DEFINE_integer("step", None, "A checkpoint's step; the last one by default.", flag_values=flag_values)
    flags.DEFINE_integer("num_samples", 1000, "How many crystals there will be.", flag_values=flag_values)
    flags.DEFINE_float(
        "temperature", 1.0, "Lower is more likely and less diverse; 0 is greedy.", flag_values=flag_values
    )
    flags.DEFINE_float("top_p", 1.0, "Nucleus: draw from this share of the probability.", flag_values=flag_values)
    flags.DEFINE_string("formula", None, "Ask for a chemical formula, such as LiFePO4.", flag_values=flag_values)
    flags.DEFINE_integer("spacegroup", None, "Ask for a space-group number, 1 to 230.", flag_values=flag_values)
    flags.DEFINE_float(
        "e_above_hull", None, "Ask for an energy above the convex hull in eV/atom.", flag_values=flag_values
    )
    flags.DEFINE_list("elements", None, "Allow these elements only, such as Li,Fe,P,O.", flag_values=flag_values)
    flags.DEFINE_integer("max_atoms", 20, "Most atoms in a cell.", flag_values=flag_values)
    flags.DEFINE_integer("batch_size", 128, "Rows decoded side by side.", flag_values=flag_values)
    flags.DEFINE_integer("seed", 0, "The same seed gives the same samples.", flag_values=flag_values)
    flags.DEFINE_string("output", None, "Directory for samples.jsonl, samples.csv, cif/.", flag_values=flag_values)
    flags.mark_flags_as_required(["checkpoint", "output"], flag_values)


def main(flag_values: flags.FlagValues) -> None:
    """Entry of `crystal-jax sample`."""
    asked = {
        "pretty_formula": flag_values.formula,
        "e_above_hull": flag_values.e_above_hull,
        "spacegroup.number": flag_values.spacegroup,
    }
    path = sample(
        Path(flag_values.checkpoint),
        output=Path(flag_values.output),
        num_samples=flag_values.num_samples,
        temperature=flag_values.temperature,
        top_p=flag_values.top_p,
        conditions={name: value for name, value in asked.items() if value is not None},
        elements=flag_values.elements or ELEMENTS,
        max_atoms=flag_values.max_atoms,
        batch_size=flag_values.batch_size,
        seed=flag_values.seed,
        step=flag_values.step,
    )
    print(f"{flag_values.num_samples} samples: {path}")


def sample(
    checkpoint: Path,
    *,
    output: Path,
    num_samples: int = 1000,
    temperature: float = 1.0,
    top_p: float = 1.0,
    conditions: Conditions | None = None,
    elements: Sequence[str] = ELEMENTS,
    max_atoms: int = 20,
    batch_size: int = 128,
    seed: int = 0,
    step: int | None = None,
) -> Path:
    """Draws crystals and returns the path of `samples.csv`.

    Args:
        checkpoint: The workdir of a training run.
        output: Directory for the samples; continued if it holds some of the same request.
        num_samples: How many there are in the end.
        temperature: See `Sampler`.
        top_p: See `Sampler`.
        conditions: Properties to ask for, by the names of `CONDITIONS`.
        elements: Elements that may occur.
        max_atoms: Most atoms in the cell.
        batch_size: Rows decoded side by side; no influence on the samples.
        seed: Sample i depends on it and on i alone.
        step: A checkpoint's step; the last by default.

    Raises:
        UserError: no such checkpoint, an impossible setting, or an output directory of another request.
    """
    if num_samples < 1 or batch_size < 1:
        raise UserError(f"num_samples={num_samples} and batch_size={batch_size} must be positive")
    # Late, so that --help and bad flags answer at once.
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from tqdm import tqdm

    from crystal_jax.checkpoint.workdir import load_trained
    from crystal_jax.config import MeshConfig
    from crystal_jax.provenance import provenance
    from crystal_jax.sample.decode import Sampler, make_generate
    from crystal_jax.sample.output import SamplesFile
    from crystal_jax.sharding import BATCH, make_mesh
    from crystal_jax.text.grammar import crystal_automaton
    from crystal_jax.text.tokenizer import encode_example, load_tokenizer

    mesh = make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    trained = load_trained(checkpoint, mesh, step=step)
    experiment = trained.experiment
    if conditions and not experiment.task.conditions:
        raise UserError(
            f"{checkpoint} was trained without conditions, so it cannot be asked for {', '.join(conditions)}"
        )
    tokenizer = load_tokenizer(experiment.tokenizer.name, Path(experiment.tokenizer.path))
    try:
        sampler = Sampler(temperature=temperature, top_p=top_p)
        automaton = crystal_automaton(tokenizer, experiment.text, max_atoms=max_atoms, elements=elements)
        prompt = generation_prompt(conditions)
    except ValueError as error:
        raise UserError(str(error)) from error
    request: dict[str, Any] = {
        "checkpoint": str(checkpoint.resolve()),
        "step": trained.step,
        "prompt": prompt,
        "temperature": temperature,
        "top_p": top_p,
        "elements": list(elements) if tuple(elements) != ELEMENTS else "all",
        "max_atoms": max_atoms,
        "seed": seed,
        "text_format": experiment.text.version,
        "coordinates": experiment.text.coordinates,
        "tokenizer": tokenizer.name,
    }
    samples = SamplesFile(output, request, provenance(("jax", "flax", "pymatgen"), command="sample"))
    generate = make_generate(trained.graph, automaton, sampler, mesh)
    # Tokenised as in training, where a completion always follows.
    head, _ = encode_example(tokenizer, prompt, "0")
    prompt_ids = jnp.array([tokenizer.bos_id, *head], jnp.int32)
    batch_size += -batch_size % mesh.size
    keys_of = jax.jit(
        lambda indices: jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(indices),
        out_shardings=NamedSharding(mesh, BATCH),
    )
    done = len(samples.rows())
    with tqdm(total=num_samples, initial=min(done, num_samples), desc="sample", unit="crystal") as bar:
        for begin in range(done, num_samples, batch_size):
            drawn = jax.device_get(generate(trained.params, prompt_ids, keys_of(jnp.arange(begin, begin + batch_size))))
            rows = []
            for index, ids, log_prob in zip(range(begin, num_samples), drawn.tokens, drawn.log_prob, strict=False):
                ids = list(itertools.takewhile(lambda i: i != tokenizer.eos_id, ids.tolist()))
                text = tokenizer.decode([*head, *ids]).removeprefix(prompt)
                experiment.text.decode(text)  # cannot fail: the grammar admits readable texts only
                rows.append(
                    {
                        "index": index,
                        "prompt": prompt,
                        "text": text,
                        "tokens": len(ids) + 1,
                        "log_prob": float(log_prob),
                    }
                )
            samples.append(rows)
            bar.update(len(rows))
    name = f"{checkpoint.resolve().name}-step{trained.step}"
    return samples.finish(experiment.text, limit=num_samples, model_name=name)
