"""What damages files for the tests of this folder, and the tests that every reader has.

A test takes a valid file, in which hypothesis changes values (types swapped, nulls, not-a-number, huge numbers, keys
that are missing) or bytes (cut off, flipped, zeroed, repeated). A reader takes the result or refuses it in one line,
and never fails otherwise. The seed is fixed.
"""

import contextlib
import copy
import io
import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystal_jax.errors import UserError

EXAMPLES = 150  # of each kind of damage and reader
WRONG = [
    None,
    "",
    "x",
    "NaN",
    0,
    -1,
    1.5,
    True,
    math.nan,
    math.inf,
    10**30,
    -(10**400),
    [],
    {},
    [[]],
    {"@module": "os"},
]


def places(value, path=()):
    """The paths of all values within a nest of dicts and lists."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from places(member, (*path, key))


@st.composite
def broken_values(draw, value):
    """JSON text of a value with one to three of its parts replaced or removed."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        new = copy.deepcopy(draw(st.sampled_from(WRONG)))
        if not path:
            if draw(st.integers(0, 5)) == 0:  # seldom the whole
                value = new
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()):
            holder[path[-1]] = new
        else:
            del holder[path[-1]]
    return json.dumps(value).encode()


@st.composite
def broken_bytes(draw, content):
    """Bytes that were cut, flipped, zeroed, repeated or led by rubbish."""
    kind = draw(st.sampled_from(["cut", "flip", "zero", "repeat", "insert", "lead"]))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    size = draw(st.integers(1, 64))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
    if kind == "zero":
        return content[:at] + bytes(size) + content[at + size :]
    if kind == "repeat":
        return content[:at] + content[max(0, at - size) :]
    rubbish = draw(
        st.sampled_from([b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\r", b",", b'"', b"{", b"nan", b"1e999", b"-"])
    )
    return content[:at] + rubbish + content[at:] if kind == "insert" else rubbish + content


def assert_one_line(error):
    text = str(error)
    assert text
    assert "\n" not in text, text
    assert len(text) < 1500, text


@contextlib.contextmanager
def refused_or_taken():
    """What a reader may do with a broken file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError as error:
        assert_one_line(error)


class Reader(NamedTuple):
    """A reader and the file that is damaged for it.

    Attributes:
        make: Writes a valid folder.
        file: The file that is damaged.
        read: Reads the folder.
    """

    make: Callable[[Path], None]
    file: str
    read: Callable[[Path], object]


@contextlib.contextmanager
def with_content(folder, file, content):
    """A copy of a folder in which one file has another content."""
    with tempfile.TemporaryDirectory() as place:
        broken = Path(place) / "folder"
        shutil.copytree(folder, broken)
        (broken / file).write_bytes(content)
        yield broken


def try_it(folder, reader, content):
    with (
        with_content(folder, reader.file, content) as broken,
        refused_or_taken(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        reader.read(broken)


def check_whole(folder, reader):
    """The undamaged file is taken."""
    assert (folder / reader.file).is_file()
    with contextlib.redirect_stderr(io.StringIO()):
        reader.read(folder)


def check_wrong_values(folder, reader):
    """Damages values of a file of JSON, or of JSON lines."""
    value, in_lines = parse_lines((folder / reader.file).read_bytes())

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(broken_values(value))
    def run(content):
        if in_lines and isinstance(rows := json.loads(content), list):
            content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try_it(folder, reader, content)

    run()


def check_wrong_bytes(folder, reader):
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(broken_bytes((folder / reader.file).read_bytes()))
    def run(content):
        try_it(folder, reader, content)

    run()


def parse_lines(content):
    """JSON, or JSON lines as a list."""
    try:
        return json.loads(content), False
    except ValueError:
        return [json.loads(line) for line in content.splitlines()], True
