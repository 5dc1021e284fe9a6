"""Commands given damaged files."""

import contextlib
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crystal_jax import cli
from tests.broken_inputs.damage import (
    EXAMPLES,
    assert_one_line,
    broken_bytes,
    broken_values,
    parse_lines,
    with_content,
)
from tests.broken_inputs.valid_folders import evaluation_folder, hf_folder, hull_folder

COMMANDS = {
    "dft": (hull_folder, "hull.json", ["dft", "collect", "--evaluation={f}", "--runs={f}", "--hull={f}/hull.json"]),
    "convert": (hf_folder, "config.json", ["convert", "--from=hf", "--to=hf", "--input={f}", "--output={f}/out"]),
    "report": (evaluation_folder, "metrics.json", ["report", "--evaluation={f}", "--output={f}/r.html"]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_with_one_line_and_leave_nothing_that_looks_whole(whole, command):
    make, file, arguments = COMMANDS[command]
    folder = whole(make)
    value, _ = parse_lines((folder / file).read_bytes())

    @settings(max_examples=EXAMPLES // 2, suppress_health_check=list(HealthCheck))
    @given(st.one_of(broken_values(value), broken_bytes((folder / file).read_bytes())))
    def run(content):
        with with_content(folder, file, content) as broken:
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                status = cli.main([argument.format(f=broken) for argument in arguments])
            assert status in (0, 1, 2)
            if status:
                lines = [line for line in said.getvalue().splitlines() if line.startswith("crystal-jax ")]
                assert len(lines) == 1
                assert_one_line(lines[0])
                assert not (broken / "out/config.json").exists()
                assert not (broken / "r.html").exists()

    run()
