"""Makes the folder of data that travels with the code to a GPU machine without network.

    python -m benchmarks.gpu.bundle --shared=../shared --output=gpu_bundle

It has:

- `mp20_open/`: the prepared data set, all splits.
- `tokenizer.model`: LLaMA-2's.
- `stories260K/`: a small LLaMA in Hugging Face's format, its tokenizer, and the logits that transformers gives for it.
- `packed_1024.npz`: batches of packed rows, as `configs/llama2_7b.py:tpu` trains on them.
- `crystals.json`: of training crystals, the formula, the atoms of the cell, and the number of tokens.
- `manifest.json`: the size and SHA-256 of each file, and the versions of the packages.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from configs import llama2_7b
from crystal_jax.config import DataConfig, Experiment, from_config_dict
from crystal_jax.data.examples import ExampleMaker, crystal_of
from crystal_jax.data.mp20 import Record, open_split
from crystal_jax.data.pipeline import fitting, train_batches
from crystal_jax.data.prepare import prepare
from crystal_jax.errors import UserError
from crystal_jax.provenance import provenance
from crystal_jax.storage.files import is_new, new_folder, write_bytes, write_text
from crystal_jax.text.prompts import generation_prompt
from crystal_jax.text.tokenizer import Tokenizer, encode_example, load_tokenizer

MANIFEST = "manifest.json"
BATCHES = 4
CRYSTALS = 4_096
_ARRAYS = ("tokens", "targets", "weights", "positions", "segments")
_PACKAGES = ("numpy", "grain", "array-record", "tensorflow-datasets", "sentencepiece")
# Name in the bundle → name in shared/weights/stories260K.
_STORIES = {
    "config.json": "stories260K-hf/config.json",
    "generation_config.json": "stories260K-hf/generation_config.json",
    "model.safetensors": "stories260K-hf/model.safetensors",
    "tokenizer.model": "tok512.model",
    "hf_logits.npz": "stories260K.hf_logits.npz",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder of data/mp20_open, tokenizer and weights")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--data", type=Path, help="mp20_open, prepared before; by default it is prepared now (minutes)")
    args = parser.parse_args(arguments)
    try:
        make_bundle(args.shared, args.output, data=args.data)
    except UserError as error:
        print(f"bundle: {error}", file=sys.stderr)
        return 2
    files = json.loads((args.output / MANIFEST).read_text())["files"]
    for name, facts in files.items():
        print(f"{facts['bytes']:>12,}  {name}")
    print(f"{sum(facts['bytes'] for facts in files.values()):>12,}  {args.output}")
    return 0


def make_bundle(shared: Path, output: Path, *, data: Path | None = None) -> None:
    """Writes the bundle.

    Args:
        shared: The folder of the files that are not in the repository.
        output: A new folder.
        data: A prepared data set; `mp20_open` is prepared by default.

    Raises:
        UserError: A file is missing, or the output cannot be written.
    """
    if not is_new(output):
        raise UserError(f"{output} is not empty; pass a new --output")
    copied = {"tokenizer.model": shared / "tokenizer/tokenizer.model"}
    copied |= {f"stories260K/{name}": shared / "weights/stories260K" / source for name, source in _STORIES.items()}
    if missing := [str(path) for path in copied.values() if not path.is_file()]:
        raise UserError(f"--shared={shared} lacks {', '.join(missing)}")
    tokenizer = load_tokenizer("llama2", copied["tokenizer.model"])
    experiment = experiment_for(tokenizer)
    with tempfile.TemporaryDirectory() as temporary, new_folder(output) as folder:
        directory = data or prepare("mp20_open", data_dir=Path(temporary), manual_dir=shared / "data/mp20_open")
        maker = ExampleMaker(tokenizer, experiment.text, experiment.task)
        records, _ = fitting(open_split(directory, "train"), maker, seq_len=experiment.data.seq_len)
        copy_dataset(directory, folder / "mp20_open")
        for name, source in copied.items():
            write_bytes(folder / name, source.read_bytes())  # without the source's permissions, which may be read-only
        packed = packed_batches(records, maker, experiment.data, number=BATCHES)
        np.savez_compressed(folder / f"packed_{experiment.data.seq_len}.npz", **packed)
        write_text(folder / "crystals.json", json.dumps(crystal_sizes(records[:CRYSTALS], maker)))
        write_manifest(folder)


def copy_dataset(source: Path, target: Path) -> None:
    """Copies a prepared data set and compresses its records in groups, which halves it; it is read as before.

    Each record is compressed on its own by default, so nothing is saved of what the CIF texts have in common. To read
    one record out of a group of 16 takes a fifth longer; Grain logs an error that groups are slow, which is no failure.
    """
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copied = target / path.relative_to(source)
        if ".array_record-" not in path.name:
            write_bytes(copied, path.read_bytes())
            continue
        reader = ArrayRecordReader(str(path))
        copied.parent.mkdir(parents=True, exist_ok=True)
        writer = ArrayRecordWriter(str(copied), "group_size:16,zstd:19")
        for record in reader.read_all():
            writer.write(record)
        writer.close()
        reader.close()


def experiment_for(tokenizer: Tokenizer, variant: str = "tpu") -> Experiment:
    """The configuration whose batches and texts are bundled."""
    return from_config_dict(llama2_7b.get_config(variant).to_dict(), vocab_size=tokenizer.vocab_size)


def packed_batches(
    records: Sequence[Record], maker: ExampleMaker, cfg: DataConfig, *, number: int
) -> dict[str, np.ndarray]:
    """The first batches of a training run: int32 [number, rows, tokens], `weights` in float32."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["bundle"])  # Grain reads absl flags of its own
    stream = train_batches(records, maker, cfg)
    batches = [next(stream) for _ in range(number)]
    return {
        name: np.stack([batch[name] for batch in batches]).astype(np.float32 if name == "weights" else np.int32)
        for name in _ARRAYS
    }


def crystal_sizes(records: Sequence[Record], maker: ExampleMaker) -> list[dict[str, Any]]:
    """Returns each crystal's formula, the atoms of each element in its cell, and its number of tokens, EOS included."""
    found = []
    for record in records:
        crystal = crystal_of(record)
        text = maker.text_format.encode(crystal)
        _, completion = encode_example(maker.tokenizer, generation_prompt({}), text)
        atoms = dict(collections.Counter(crystal.symbols))
        found.append({"formula": record.formula, "atoms": atoms, "tokens": len(completion) + 1})
    return found


def add_file(folder: Path, name: str, content: bytes) -> None:
    """Adds a file to a bundle and to its manifest."""
    write_bytes(folder / name, content)
    write_manifest(folder)


def write_manifest(folder: Path) -> None:
    """Lists every file of a bundle, with its size and SHA-256."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_text(folder / MANIFEST, json.dumps(provenance(_PACKAGES, files=files), indent=1))


if __name__ == "__main__":
    sys.exit(main())
