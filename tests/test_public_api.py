"""What `import crystal_jax` offers, and what it costs."""

import inspect
import subprocess
import sys

import pytest

import crystal_jax

HEAVY = ("jax", "flax", "numpy", "pandas", "pymatgen", "scipy", "torch")


def test_every_public_name_is_found():
    for name in crystal_jax.__all__:
        assert callable(getattr(crystal_jax, name)), name
        assert name in dir(crystal_jax)


@pytest.mark.parametrize("name", ["sample", "infill", "search", "score", "evaluate", "report", "train"])
def test_a_package_is_called_like_its_function(name):
    package = getattr(crystal_jax, name)
    function = getattr(__import__(f"crystal_jax.{name}.run", fromlist=[name]), name)
    assert inspect.signature(package) == inspect.signature(function)
    assert package.__wrapped__ is function
    assert package.__path__  # still a package


def test_a_call_reaches_the_function(tmp_path, salt):
    evaluation = crystal_jax.evaluate([salt], progress=False)
    assert evaluation.metrics["validity"]["hits"] == 1
    with pytest.raises(crystal_jax.UserError, match="no such file"):
        crystal_jax.evaluate(tmp_path / "nothing.csv", progress=False)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = crystal_jax.colour


def test_the_import_loads_nothing_heavy():
    code = (
        f"import sys, crystal_jax; crystal_jax.sample, crystal_jax.train; print(*({set(HEAVY)!r} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
