"""The exceptions that are no faults of the program: bad input, and being asked to stop."""


class UserError(Exception):
    """Bad input from a user.

    The message is a single line that names the offending thing and says how to mend it. The
    command line prints it alone and exits with status 1; library callers may catch it.
    """


class Preempted(Exception):  # noqa: N818 - nothing went wrong
    """The machine is about to be taken away, and what was being done is saved: the same command goes on with it.

    The command line exits with status 75 (`EX_TEMPFAIL` of sysexits.h: try again), by which a launcher knows that the
    job is neither done nor broken.
    """
