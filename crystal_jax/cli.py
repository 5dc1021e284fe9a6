"""`crystal-jax COMMAND`: finds the command's module, parses its flags, reports bad input in one line.

A command is the `run` module of its package, or a module of its own. The module has a docstring (the help text),
`define_flags(flag_values)` and `main(flag_values)`. Only the requested command's module is imported, so `evaluate` does
not import JAX.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import logging as standard_logging
import math
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from crystal_jax import __version__, old_names, progress
from crystal_jax.errors import Preempted, UserError
from crystal_jax.storage.files import cache_folder

COMMANDS = {
    "demo": ("crystal_jax.demo", "run all steps on the small embedded data set"),
    "prepare": ("crystal_jax.data.run", "build a TFDS data set of crystals"),
    "train": ("crystal_jax.train.run", "train a model, fully or through LoRA; resumes by itself"),
    "sample": ("crystal_jax.sample.run", "write new crystals with a trained model"),
    "infill": ("crystal_jax.infill.run", "rank elements that could replace one element of a crystal"),
    "search": ("crystal_jax.search.run", "search for crystals with a high reward"),
    "score": ("crystal_jax.score.run", "compute the log-likelihood of given crystals under a model"),
    "evaluate": ("crystal_jax.evaluate.run", "say which crystals are valid, like real ones, new and stable"),
    "relax": ("crystal_jax.relax.run", "relax given crystals and say how far above the convex hull they are"),
    "hull": ("crystal_jax.hull.run", "build a convex hull from known crystals with a potential's energies"),
    "compile": ("crystal_jax.compile.run", "compile for TPUs or GPUs that are not there: memory, time"),
    "convert": ("crystal_jax.checkpoint.run", "convert models: Hugging Face, Meta, EasyLM, PEFT, GGUF, workdirs"),
    "sweep": ("crystal_jax.sweep.run", "train one configuration many times, here or as jobs, and tabulate it"),
    "dft write": ("crystal_jax.dft.write", "VASP inputs for the crystals that an evaluation found metastable"),
    "dft collect": ("crystal_jax.dft.collect", "read finished VASP runs back into the evaluation"),
    "report": ("crystal_jax.report.run", "turn an evaluation into one HTML page"),
}

_FLAG = re.compile(r"(--?)([A-Za-z][\w.-]*)(=.*)?", re.DOTALL)
_HOME = re.compile(r"(?:^|(?<==)|(?<=,))~[^/=,]*(?=/|$|,)")


def _usage() -> str:
    rows = [f"  {name:<13}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            f"crystal-jax {__version__}: crystals as text, LLaMA-2 with LoRA, in JAX",
            "",
            "usage: crystal-jax COMMAND [--flag=value ...]",
            "",
            *rows,
            "",
            "'crystal-jax COMMAND --help' lists the command's flags.",
        ]
    )


def _flag_help(flag_values: flags.FlagValues) -> str:
    """Returns one row per flag, in the order of definition."""
    own = [flag_values[name] for name in flag_values]
    width = max(len(flag.name) for flag in own) + 6
    rows = []
    for flag in own:
        default = "" if flag.default in (None, [], "", False) else f" [default: {flag.default}]"
        text = textwrap.fill(f"{flag.help}{default}", 108, initial_indent=" " * width, subsequent_indent=" " * width)
        rows.append(f"  --{flag.name}".ljust(width) + text.lstrip())
    return "\n".join(rows)


def _parse(flag_values: flags.FlagValues, name: str, arguments: list[str]) -> None:
    """Parses arguments. A dash in a flag's name is read as an underscore, and ~ as the home folder.

    Raises:
        flags.Error: the arguments or a configuration file are wrong; the message is one line.
    """
    arguments = [_at_home(_with_underscores(argument, flag_values)) for argument in arguments]
    # ml_collections looks for the overrides of a configuration in sys.argv, whatever is being parsed.
    sys.argv, saved = [name, *arguments], sys.argv
    try:
        extra = flag_values([name, *arguments])[1:]
    except Exception as error:  # a flag is wrong, or the code of a configuration file raised an error
        # ml_collections quotes a KeyError within another error: undo the escapes.
        text = str(error).replace("\\n", "\n").replace("\\'", "'").strip("'\"")
        lines = [line for line in text.splitlines() if line.strip()]
        # absl appends the traceback of a configuration file; its last line says what happened.
        shown = lines[-1:] if any(line.startswith("Traceback") for line in lines) else lines
        if isinstance(error, KeyError | AttributeError) and (sentence := _missing_key(arguments)):
            shown = [sentence]
        raise flags.Error(" ".join(line.strip() for line in shown)) from error
    finally:
        sys.argv = saved
    if extra:
        raise flags.Error(f"unexpected argument {extra[0]!r}; options are written --name=value")
    for flag in flag_values:
        _check_number(flag, flag_values[flag].value)


def _with_underscores(argument: str, flag_values: flags.FlagValues) -> str:
    """Returns the argument under its flag's name: --num-samples becomes --num_samples, --no-x becomes --nox."""
    match = _FLAG.fullmatch(argument)
    if match is None or "-" not in match[2]:
        return argument
    dashes, name, rest = match[1], match[2].replace("-", "_"), match[3] or ""
    if name.startswith("no_") and name.removeprefix("no_") in flag_values and name not in flag_values:
        name = f"no{name.removeprefix('no_')}"
    return f"{dashes}{name}{rest}"


def _at_home(argument: str) -> str:
    """Replaces ~ at the start of a path by the home folder. A shell does so after a space, not after = or a comma."""
    return _HOME.sub(lambda match: os.path.expanduser(match[0]), argument)  # noqa: PTH111 - Path refuses ~nobody


def _check_number(name: str, value: Any) -> None:
    """Rejects infinite, NaN and huge numbers; absl's own bounds accept NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        raise flags.IllegalFlagValueError(f"flag --{name}={value}: it must be a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise flags.IllegalFlagValueError(f"flag --{name}={value:.1e}: the number is too large")


def _missing_key(arguments: Sequence[str]) -> str | None:
    from crystal_jax.config_key import missing_key  # late: it loads the configuration

    return missing_key(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0 done, 1 bad input, 2 wrong usage, 75 pre-empted and to be run again, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(__version__)
        return 0
    name, *rest = argv
    if rest and f"{name} {rest[0]}" in COMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
        print(f"crystal-jax: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    # Orbax logs its arguments, and the errors that it also raises. asyncio, which it uses, does the same.
    logging.set_verbosity(logging.FATAL)
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    # The next command with the same model then starts in seconds.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder() / "programs"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    module = importlib.import_module(COMMANDS[name][0])
    flag_values = flags.FlagValues()
    module.define_flags(flag_values)
    if any(word in ("-h", "--help") for word in rest):
        description = (module.__doc__ or "").strip()
        print(f"usage: crystal-jax {name} [--flag=value ...]\n\n{description}\n\n{_flag_help(flag_values)}")
        return 0
    try:
        _parse(flag_values, name, old_names.present_flags(name, rest))
        progress.say(f"crystal-jax {name}: loading libraries")
        module.main(flag_values)
    except flags.Error as error:
        print(f"crystal-jax {name}: {error} (see 'crystal-jax {name} --help')", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"crystal-jax {name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a file that may not be written, a mount that is gone
        place = f"{error.filename}: " if error.filename else ""
        print(f"crystal-jax {name}: {place}{error.strerror or error}; finished results are saved", file=sys.stderr)
        return 1
    except (RuntimeError, ValueError) as error:
        if not _is_full_disk(error):
            raise
        print(
            f"crystal-jax {name}: no space is left on the disk; free some, and run the command again; what is "
            "finished is on disk",
            file=sys.stderr,
        )
        return 1
    except Preempted as stop:
        print(f"crystal-jax {name}: {stop}", file=sys.stderr)
        return 75
    except KeyboardInterrupt:
        print(f"crystal-jax {name}: interrupted; finished results are saved", file=sys.stderr)
        return 130
    return 0


def _is_full_disk(error: BaseException | None) -> bool:
    """Whether an error of a library that writes checkpoints comes from a full disk."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def script() -> None:
    """The console entry point."""
    sys.exit(main())


if __name__ == "__main__":
    script()
