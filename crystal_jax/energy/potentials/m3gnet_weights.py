"""Finds M3GNet's weights: in a given folder, in the cache, or in the package that contains them.

The checkpoint of the paper's evaluator, MP-2021.2.8-EFS (materialsvirtuallab/m3gnet, BSD-3), has no package of its own,
but the wheel of `slices` contains its three files unchanged. Only this wheel is downloaded, and only these files are
extracted; nothing of the package is installed or run. In all three cases, SHA-256 hashes of the files are checked.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from crystal_jax.errors import UserError
from crystal_jax.json_files import stored_bytes
from crystal_jax.storage.files import as_path, cache_folder, new_folder

SHA256 = {
    "m3gnet.data-00000-of-00001": "3d6d4bd777eb7af8efe7ccae0804ffbc58cdb9aac946db08b01e7e5f41eb70eb",
    "m3gnet.index": "7b6cdf0924e0ba9ac8d66c2905bf49ab3365e56def73de90b154d1506cfcc6ce",
    "m3gnet.json": "1aff67d1a07d460185d6e97286147a3e508cf323a532a70412832f374695ff72",
}
FOLDER = "MP-2021.2.8-EFS"
WHEEL = "slices==2.0.12"  # 16.5 MB


def m3gnet_folder(folder: Path | str | None = None) -> Path:
    """Returns a folder with the checkpoint's three files, after checking their hashes.

    Args:
        folder: folder with the files; by default they are looked for in the cache, and downloaded into it if missing.

    Raises:
        UserError: a file is missing or differs from the published one, or the download fails.
    """
    if folder is not None:
        folder = as_path(folder, "weights")
        advice = f"give --energy_weights a folder with {', '.join(SHA256)} of {FOLDER}, or leave it out to fetch them"
        _check(folder, advice)
        return folder
    folder = cache_folder() / "m3gnet" / FOLDER
    if not folder.is_dir():
        _fetch(folder)
    _check(folder, f"delete the folder {folder} to fetch it again")
    return folder


def _check(folder: Path, advice: str) -> None:
    """Checks the hash of each file.

    Raises:
        UserError: a file is missing or differs from the published one; the message ends with `advice`.
    """
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; {advice}")
        found = hashlib.sha256(stored_bytes(path)).hexdigest()
        if found != expected:
            raise UserError(f"{path} is not the file of {FOLDER}: its SHA-256 is {found}; {advice}")


def _fetch(folder: Path) -> None:
    """Downloads the wheel with pip, so that pip's settings and mirrors apply, and extracts the files.

    The hashes are checked before the files are moved to `folder`, so a wrong wheel leaves nothing behind.
    """
    print(f"fetching M3GNet's weights ({FOLDER}, 1 MB, from the wheel {WHEEL}) into {folder}", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run([*command, f"--dest={place}", WHEEL], capture_output=True, text=True, check=False)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or not wheels:
            raise UserError(_not_fetched((done.stderr.strip().splitlines() or ["no reason given"])[-1]))
        try:
            with new_folder(folder) as half:
                _take_out(wheels[0], half)
        except UserError:
            if not folder.is_dir():  # another process may have downloaded them meanwhile
                raise


def _take_out(wheel: Path, folder: Path) -> None:
    """Extracts the checkpoint's files from a wheel to a folder.

    Raises:
        UserError: the wheel lacks a file, or contains a different one.
    """
    for name, expected in SHA256.items():
        try:
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(f"slices/{FOLDER}/{name}")
        except (zipfile.BadZipFile, KeyError, zlib.error) as error:
            raise UserError(_not_fetched(f"{wheel.name} has no {name}: {error}")) from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise UserError(_not_fetched(f"{name} in {wheel.name} is another file: its SHA-256 is {found}"))
        (folder / name).write_bytes(content)


def _not_fetched(reason: str) -> str:
    return (
        f"M3GNet's weights cannot be fetched ({reason}); put {', '.join(SHA256)} of {FOLDER} into a folder and pass "
        "--energy_weights=FOLDER"
    )
