"""The one exception of this package: its message says what failed, where to look and what to do."""


class DevClusterError(Exception):
    """A step of bringing a dev cluster up or down failed; the message is meant for the person who ran it."""
