"""TFDS data set `mp20`: crystals as CIF, cell, sites and properties; see README.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from crystal_jax.errors import UserError
from tfds_mp20 import published
from tfds_mp20.amcsd import Amcsd
from tfds_mp20.crystals import Example
from tfds_mp20.names import DATASETS, FAIL
from tfds_mp20.user_files import UserFiles

_PUBLISHED = {
    "mp20": (published.MP20, "MP-20: 45,229 Materials Project crystals of at most 20 atoms, CDVAE's splits."),
    "perov5": (published.PEROV5, "Perov-5: 18,928 perovskites of 5 atoms, CDVAE's splits."),
    "carbon24": (published.CARBON24, "Carbon-24: 10,153 carbon crystals of 6 to 24 atoms, CDVAE's splits."),
    "mp20_open": (
        published.MP20_OPEN,
        "15,491 Materials Project crystals, in the manner of MP-20 but not MP-20.",
    ),
}


class Source(Protocol):
    """Source of the crystals of a config."""

    def splits(self, dl_manager: Any) -> dict[str, Iterator[Example]]:
        """Returns the examples of each split."""


@dataclasses.dataclass(kw_only=True)
class CrystalsConfig(tfds.core.BuilderConfig):
    """TFDS config with its source of crystals."""

    source: Source


def make_config(
    dataset: str,
    *,
    path: Path | None = None,
    max_entries: int | None = None,
    seed: int = 0,
    on_error: str = FAIL,
    primitive: bool = True,
) -> CrystalsConfig:
    """Returns the config of a data set or of a subset of it. Different contents have different names.

    Args:
        dataset: one of DATASETS.
        path: the user's files; only for "csv".
        max_entries: size of the subset; None for all.
        seed: seed that selects the subset.
        on_error: "fail" or "skip"; only for "csv".
        primitive: whether to reduce cells to primitive ones; only for "csv".

    Raises:
        UserError: there is no such data set, or "csv" has no path.
    """
    if max_entries is not None and max_entries < 1:
        raise UserError(f"max_entries={max_entries} leaves no crystals; give a positive number")
    subset: dict[str, Any] = {"max_entries": max_entries, "seed": seed}
    source: Source
    name = dataset
    if dataset in _PUBLISHED:
        table, description = _PUBLISHED[dataset]
        source = dataclasses.replace(table, **subset)
    elif dataset == "amcsd":
        source, description = Amcsd(**subset), "Measured mineral structures of at most 20 atoms (AMCSD)."
    elif dataset == "csv":
        if path is None:
            raise UserError("the data set csv needs --manual_dir: a CSV table, or a folder of tables or crystal files")
        source = UserFiles(path=path, on_error=on_error, primitive=primitive, **subset)
        name, description = f"csv_{source.digest()}", f"The crystals of {path.name}."
    else:
        raise UserError(f"there is no data set {dataset!r}; there are: {', '.join(DATASETS)}")
    if max_entries is not None:
        name += f"_{max_entries}" + (f"_seed{seed}" if seed else "")
    return CrystalsConfig(name=name, description=description, source=source)


class Builder(tfds.core.GeneratorBasedBuilder):
    """Builds any config of `mp20`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put train, val and test (.csv or .csv.gz) into the folder; see README.md."
    BUILDER_CONFIGS: ClassVar = [make_config(dataset) for dataset in DATASETS if dataset != "csv"]

    # TFDS 4.9.10 would find it through importlib_resources, which is neither a requirement nor needed here.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        # Floats are stored as bytes of little-endian float64: TFDS would round a float64 feature to float32.
        floats = tfds.features.Scalar(np.object_)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "cif": tfds.features.Text(doc="As the source has it, or of the primitive cell (amcsd, csv)."),
                    "lattice": tfds.features.Scalar(np.object_, doc="a, b, c in Å and α, β, γ in degrees."),
                    "frac_coords": tfds.features.Scalar(np.object_, doc="Fractional coordinates, [n_sites, 3]."),
                    "atomic_numbers": tfds.features.Tensor(shape=(None,), dtype=np.int32, doc="Of each site."),
                    "material_id": tfds.features.Text(),
                    "formation_energy_per_atom": floats,
                    "band_gap": floats,
                    "e_above_hull": floats,
                    "spacegroup": tfds.features.Scalar(np.int32),
                    "formula": tfds.features.Text(),
                    "source": tfds.features.Text(),
                    "extra": tfds.features.Text(),
                }
            ),
            homepage="https://github.com/txie-93/cdvae/tree/main/data",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Example]]]:
        splits = self.builder_config.source.splits(dl_manager)
        return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples: Iterator[Example]) -> Iterator[tuple[int, Example]]:
        yield from enumerate(examples)
