"""The result of a pod, as JSON in its termination log: at most 4 KiB, whatever it has to say."""

import json
import logging
from pathlib import Path
from typing import Any

from finetune_api.messages import TERMINATION_MESSAGE_BYTES, PreflightResult, TrainerResult

log = logging.getLogger(__name__)


def write(result: PreflightResult | TrainerResult, path: Path) -> None:
    """Write the result where the kubelet looks for it. A place that cannot be written to is logged: the exit code still speaks."""
    try:
        path.write_bytes(encode(result))
    except OSError as error:
        log.warning("the result cannot be written to %s: %s", path, error.strerror)


def encode(result: PreflightResult | TrainerResult) -> bytes:
    """The result as JSON of at most 4 KiB: long texts are cut, then the last warnings and problems are left out, and their number said."""
    content = result.to_json()
    for limit in (2000, 1000, 600, 400, 300):
        encoded = _dump(_cut(content, limit))
        if len(encoded) <= TERMINATION_MESSAGE_BYTES:
            return encoded
    content = _cut(content, 300)
    for key in ("warnings", "problems"):
        items = content.get(key) or []
        dropped = 0
        while len(_dump(content)) > TERMINATION_MESSAGE_BYTES - 80 and len(items) > 1:
            items.pop()
            dropped += 1
        if dropped and key == "problems":
            items[-1]["message"] += f" (and {dropped} more, see the pod's log)"
        elif dropped:
            items[-1] = f"and {dropped + 1} more, see the pod's log"
    return _dump(content)


def _cut(value: Any, limit: int) -> Any:
    """A copy in which no text is longer than ``limit``."""
    if isinstance(value, str):
        return value if len(value) <= limit else value[: limit - 1] + "…"
    if isinstance(value, dict):
        return {key: _cut(item, limit) for key, item in value.items()}
    return [_cut(item, limit) for item in value] if isinstance(value, list) else value


def _dump(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
