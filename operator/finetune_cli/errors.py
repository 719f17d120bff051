"""The one exception of the command line: what it says is shown to the user, without a traceback."""


class CliError(Exception):
    """Something that the user can act on: what is wrong, where, what was found, what to do. ``code`` is the exit status."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
