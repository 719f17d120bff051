"""Limit the messages and lists of status, events and termination messages, and the numbers of a spec."""

TERMINATION_MESSAGE_BYTES = 4096
"""The kubelet keeps no more of a termination message."""
STATUS_MESSAGE_CHARACTERS = 4096
"""A message in status: of a condition, an attempt or a pod."""
POD_MESSAGE_CHARACTERS = 4000
"""Message about one serving pod. It is part of a condition's message."""
ATTEMPT_MESSAGE_CHARACTERS = 1024
"""Message of one attempt in status.attempts."""
HISTORY_MESSAGE_CHARACTERS = 1024
"""Message, and one piece of evidence, of an entry in an AdapterDeployment's status.history."""
OUTPUT_MESSAGE_CHARACTERS = 1500
"""Part of a container's output, or of another component's message, that a message of ours quotes."""
QUOTE_CHARACTERS = 300
"""One line of another component's error or answer that a message of ours quotes."""
EVENT_NOTE_BYTES = 1000
"""Note of a Kubernetes Event. The API allows 1024."""
STATUS_ATTEMPTS = 20
"""Attempts that status.attempts keeps."""
MAX_HISTORY = 100
"""Highest spec.revisionHistoryLimit of an AdapterDeployment: an API object has a limited size."""
STATUS_WARNINGS = 20
"""Warnings that status.warnings keeps."""


def truncate(text: str, characters: int) -> str:
    """Cut a text to this many characters; the last one is then an ellipsis."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def end_sentence(text: str) -> str:
    """Add a full stop where there is none, so that another sentence may follow."""
    text = text.strip()
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def quote(text: str) -> str:
    """Return a text on one line, cut to ``QUOTE_CHARACTERS``."""
    return truncate(" ".join(text.split()), QUOTE_CHARACTERS)


MAX_NAME = 200
"""Characters of an object's name: a child's name is it and a suffix, and must be a label value."""
MAX_COUNT = 2**31 - 1
"""Highest value of a count in a spec: what a signed integer of 32 bits holds, because libraries keep counts in one."""
MAX_SEED = 2**32 - 1
"""Highest seed that NumPy takes."""
MAX_NUMBER = 1e9
"""Highest value of a factor or weight in a spec: no sensible one is near it."""
