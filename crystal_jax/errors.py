"""The one exception that means "the input is at fault, not the program"."""


class UserError(Exception):
    """Bad input from a user.

    The message is a single line that names the offending thing and says how to mend it. The
    command line prints it alone and exits with status 1; library callers may catch it.
    """
