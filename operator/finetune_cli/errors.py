"""Define the exception of the command line, whose message is shown without a traceback."""


class CliError(Exception):
    """An error that the user can correct.

    Attributes:
        code: Exit status.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        """Keep the message: what is wrong, where, what was found, and what to do."""
        super().__init__(message)
        self.code = code
