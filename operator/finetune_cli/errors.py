"""The one exception of the command line: what it says is shown to the user, without a traceback."""


class CliError(Exception):
    """Something that the user can act on: what is wrong, where, what was found, what to do."""
