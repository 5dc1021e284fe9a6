"""Crystal generation with LLaMA-2 and LoRA, in JAX: text, training, constrained sampling, evaluation.

The functions of the commands are called from Python by these names; nothing is imported before it is used:

    import crystal_jax

    path = crystal_jax.sample("crystal-tiny", output="samples", num_samples=20, conditions={"pretty_formula": "LaFeO3"})
    evaluation = crystal_jax.evaluate(path)
    evaluation.metrics["validity"], evaluation.candidates
    relaxation = crystal_jax.relax(structures)  # of pymatgen
    relaxation.table["e_above_hull"], relaxation.structures
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "EvaluateConfig",
    "Evaluation",
    "HullConfig",
    "InfillConfig",
    "RelaxConfig",
    "Relaxation",
    "SampleConfig",
    "ScoreConfig",
    "SearchConfig",
    "UserError",
    "evaluate",
    "hull",
    "infill",
    "prepare",
    "relax",
    "report",
    "sample",
    "score",
    "search",
    "train",
]

if TYPE_CHECKING:
    from crystal_jax.data.prepare import prepare as prepare
    from crystal_jax.errors import UserError as UserError
    from crystal_jax.evaluate.config import EvaluateConfig as EvaluateConfig
    from crystal_jax.evaluate.evaluation import Evaluation as Evaluation
    from crystal_jax.evaluate.run import evaluate as evaluate
    from crystal_jax.hull.config import HullConfig as HullConfig
    from crystal_jax.hull.run import hull as hull
    from crystal_jax.infill.config import InfillConfig as InfillConfig
    from crystal_jax.infill.run import infill as infill
    from crystal_jax.relax.config import RelaxConfig as RelaxConfig
    from crystal_jax.relax.relaxation import Relaxation as Relaxation
    from crystal_jax.relax.run import relax as relax
    from crystal_jax.report.run import report as report
    from crystal_jax.sample.config import SampleConfig as SampleConfig
    from crystal_jax.sample.run import sample as sample
    from crystal_jax.score.config import ScoreConfig as ScoreConfig
    from crystal_jax.score.run import score as score
    from crystal_jax.search.config import SearchConfig as SearchConfig
    from crystal_jax.search.run import search as search
    from crystal_jax.train.run import train as train

_MODULES = {
    "EvaluateConfig": "evaluate.config",
    "Evaluation": "evaluate.evaluation",
    "HullConfig": "hull.config",
    "InfillConfig": "infill.config",
    "RelaxConfig": "relax.config",
    "Relaxation": "relax.relaxation",
    "SampleConfig": "sample.config",
    "ScoreConfig": "score.config",
    "SearchConfig": "search.config",
    "UserError": "errors",
    "prepare": "data.prepare",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name in _MODULES:
        return getattr(importlib.import_module(f"crystal_jax.{_MODULES[name]}"), name)
    if name in __all__:  # a package that is called like its function
        return importlib.import_module(f"crystal_jax.{name}")
    raise AttributeError(f"module 'crystal_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
