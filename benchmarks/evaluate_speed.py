"""Measures how long an evaluation takes, and its fingerprints against a plain loop with matminer.

All metrics without energies of N crystals against 1,590 or fewer real ones, wall time and peak memory, with an
empty cache; and the fingerprints alone against `matminer`'s, crystal after crystal. matminer wants an older pandas than
this project, so it lives in an interpreter of its own (--peer), which runs this same file. With --sizes=1000,10000 the
growth.

    python -m venv peer && peer/bin/pip install matminer
    PYTHONPATH=. python benchmarks/evaluate_speed.py --samples=train.csv.gz --reference=test.csv.gz
    --peer=peer/bin/python
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
_parser.add_argument("--samples", type=Path, required=True, help="CSV with a column cif")
_parser.add_argument("--reference", type=Path, help="CSV with a column cif")
_parser.add_argument("--sizes", default="1000", help="numbers of crystals of the metrics, with commas")
_parser.add_argument("--peer", type=Path, help="an interpreter with matminer")
_parser.add_argument("--peer_crystals", type=int, default=50, help="crystals of matminer's loop, which is slow")
_parser.add_argument("--threads", type=int, default=2, help="processes of the metrics")
_parser.add_argument("--as_peer", action="store_true", help=argparse.SUPPRESS)


def main() -> None:
    args = _parser.parse_args()
    cifs = read(args.samples)
    if args.as_peer:
        print(json.dumps(plain_loop(cifs)))
        return
    if args.reference:
        for size in map(int, args.sizes.split(",")):
            whole_evaluation(cifs[:size], args.reference, args.threads)
    if args.peer:
        against_matminer(cifs[: args.peer_crystals], args.peer, args.threads)
    print(f"load average at the end {os.getloadavg()[0]:.2f}")


def read(path: Path) -> list[str]:
    """CIF texts, in an order of their own that does not follow the table's."""
    csv.field_size_limit(10**9)
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    cifs = [row["cif"] for row in csv.DictReader(io.StringIO(text))]
    random.Random(0).shuffle(cifs)
    return cifs


def write(cifs: list[str], path: Path) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["cif"])
        table.writerows([cif] for cif in cifs)
    return path


def whole_evaluation(cifs: list[str], reference: Path, workers: int) -> None:
    """In a process of its own, for its memory."""
    with tempfile.TemporaryDirectory() as place:
        samples = write(cifs, Path(place) / "samples.csv")
        options = [f"--samples={samples}", f"--reference={reference}", f"--output={place}/out", f"--workers={workers}"]
        environment = os.environ | {"CRYSTAL_JAX_CACHE": f"{place}/cache"}
        begin = time.perf_counter()
        command = [sys.executable, "-m", "crystal_jax.cli", "evaluate", *options, "--noprogress"]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(
        f"all metrics, {len(cifs):,} crystals: {seconds:.0f} s, {1000 * seconds / len(cifs):.0f} ms each, "
        f"{memory:.1f} GiB"
    )


def plain_loop(cifs: list[str]) -> dict[str, object]:
    """What the published evaluators do: one crystal, one site, one order parameter after the other."""
    warnings.simplefilter("ignore")
    import numpy as np
    from matminer.featurizers.composition.composite import ElementProperty
    from matminer.featurizers.site.fingerprint import CrystalNNFingerprint
    from pymatgen.core import Structure

    sites = CrystalNNFingerprint.from_preset("ops")
    elements = ElementProperty.from_preset("magpie", impute_nan=False)
    rows, begin, cpu = [], time.perf_counter(), time.process_time()
    for cif in cifs:
        structure = Structure.from_str(cif, fmt="cif")
        elements.featurize(structure.composition)
        rows.append(np.mean([sites.featurize(structure, i) for i in range(len(structure))], axis=0).tolist())
    return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu, "rows": rows}


def against_matminer(cifs: list[str], peer: Path, workers: int) -> None:
    import numpy as np

    from crystal_jax.evaluate.fingerprints import fingerprints
    from crystal_jax.structures import Entry, parse

    with tempfile.TemporaryDirectory() as place:
        samples = write(cifs, Path(place) / "samples.csv")
        call = [peer, __file__, f"--samples={samples}", "--as_peer"]
        theirs = json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        ordered = read(samples)
        os.environ["CRYSTAL_JAX_CACHE"] = place
        begin, cpu = time.perf_counter(), cpu_seconds()
        ours = fingerprints([parse(Entry(str(i), cif)) for i, cif in enumerate(ordered)], workers=workers)
        seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    difference = abs(ours.structure - np.array(theirs["rows"])[ours.places]).max(axis=1)
    print(f"fingerprints of {len(cifs)} crystals: ours {seconds:.1f} s ({cpu:.1f} s of CPU, {workers} processes),")
    print(
        f"  matminer {theirs['seconds']:.1f} s ({theirs['cpu']:.1f} s of CPU), ratio {theirs['seconds'] / seconds:.1f}"
    )
    print(f"  equal to 1e-9: {(difference < 1e-9).sum()} of {len(ours)}; largest difference {difference.max():.1e}")


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main()
