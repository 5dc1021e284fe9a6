"""The exceptions that are no faults of the program: bad input, and being asked to stop."""

import re

_CONTROL = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029]+\s*")
_LONGEST = 1200  # characters of a message; a file's own text may be in it


class UserError(Exception):
    """Bad input from a user.

    The message is a single line that names the offending thing and says how to mend it. The
    command line prints it alone and exits with status 1; library callers may catch it.

    A message may quote a file, and so hold anything: control characters, such as line ends and those that move a
    terminal's cursor, become spaces, and the middle of a very long message is left out.
    """

    def __init__(self, message: str):
        text = _CONTROL.sub(" ", message).strip()
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
        super().__init__(text)


class RequestError(ValueError):
    """A request cannot be met: limits contradict each other, or the text format cannot express it.

    The functions that decide this know neither flags nor files, so that this is no `UserError`; a command makes it one.
    Other errors of the type ValueError are faults of the program, and end with a traceback.
    """


class Preempted(Exception):  # noqa: N818 - nothing went wrong
    """The machine is about to be taken away, and what was being done is saved: the same command goes on with it.

    The command line exits with status 75 (`EX_TEMPFAIL` of sysexits.h: try again), by which a launcher knows that the
    job is neither done nor broken.
    """
