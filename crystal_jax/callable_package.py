"""Lets a package be called: `crystal_jax.sample(...)` is the function `sample` of `crystal_jax/sample/run.py`.

The package of a command and its function have one name, and importing a submodule binds that name to the package. So
the package itself passes a call on, and imports the function only then.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any


class CallablePackage(types.ModuleType):
    """Package of a command, which is called like its function."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Calls the function of the command."""
        return self.__wrapped__(*arguments, **settings)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function, from which `inspect` and notebooks take signature and docstring."""
        run = importlib.import_module(f"{self.__name__}.run")
        function: Callable[..., Any] = getattr(run, self.__name__.rpartition(".")[2])
        return function


def make_callable(name: str) -> None:
    """Makes the imported package `name` callable."""
    sys.modules[name].__class__ = CallablePackage
