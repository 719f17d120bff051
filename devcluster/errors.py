"""Define the exception of this package."""


class DevClusterError(Exception):
    """A step of bringing a dev cluster up or down failed; the message says what, where to look and what to do."""
