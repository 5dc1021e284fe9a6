"""Where M3GNet's weights are: a folder that is named, the cache, or the package that carries them.

The checkpoint of the paper's evaluator, MP-2021.2.8-EFS (materialsvirtuallab/m3gnet, BSD-3), is not on a package index
of its own, but the wheel of `slices` holds its three files unchanged. Only the wheel is fetched, and only these files
are taken from it; nothing of the package is installed or run. Whatever the way, the files are checked by SHA-256.
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
    """A folder with the checkpoint's three files, checked.

    Args:
        folder: where they are; by default they are looked for in the cache, and fetched into it if they are not there.

    Raises:
        UserError: a file is missing or is another one, or they cannot be fetched.
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
    """Raises UserError, with advice, where a file is missing or is not the published one."""
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; {advice}")
        found = hashlib.sha256(stored_bytes(path)).hexdigest()
        if found != expected:
            raise UserError(f"{path} is not the file of {FOLDER}: its SHA-256 is {found}; {advice}")


def _fetch(folder: Path) -> None:
    """Takes the files out of the wheel, through pip, so that its settings and mirrors hold.

    They are checked before they come to `folder`, so that a wrong wheel leaves nothing behind.
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
            if not folder.is_dir():  # another process may have fetched them meanwhile
                raise


def _take_out(wheel: Path, folder: Path) -> None:
    """Writes the checkpoint's files of a wheel to a folder.

    Raises:
        UserError: the wheel lacks one, or has another one.
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
