"""Wait for other processes and threads."""

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
OPERATOR_SECONDS = 60.0
"""How long a test waits for the operator, which takes milliseconds on an idle machine."""


def free_port() -> int:
    """Return a TCP port of loopback on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def until(title: str, read: Callable[[], T | None], within: float = OPERATOR_SECONDS) -> T:
    """Call ``read`` until its answer is true, as ``wait_for`` does, with the time limit for the operator."""
    return wait_for(read, within, title)


def wait_for(read: Callable[[], T | None], seconds: float, title: str) -> T:
    """Call ``read`` until its answer is true, and return that answer.

    Raises:
        AssertionError: It took longer than ``seconds``; the message begins with ``title``.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = read()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{title}: not within {seconds} s"
        time.sleep(0.02)
