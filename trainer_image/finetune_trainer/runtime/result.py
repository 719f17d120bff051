"""The result of a pod, as JSON in its termination log: at most 4 KiB, whatever it has to say."""

import json
import logging
from pathlib import Path
from typing import Any

from finetune_api.limits import TERMINATION_MESSAGE_BYTES
from finetune_api.messages import PreflightResult, TrainerResult

log = logging.getLogger(__name__)
NEVER_CUT = ("uri", "hub", "digest")
OPTIONAL_SECTIONS = ("data", "progress", "report", "warnings", "evaluation")
"""What is left out, in this order, where even cut texts are too many."""


def write(result: PreflightResult | TrainerResult, path: Path) -> None:
    """Write the result where the kubelet looks for it. A place that cannot be written to is logged: the exit code still speaks."""
    try:
        path.write_bytes(encode(result))
    except OSError as error:
        log.warning("the result cannot be written to %s: %s", path, error.strerror)


def encode(result: PreflightResult | TrainerResult) -> bytes:
    """The result as JSON of at most 4 KiB: long texts are cut, then the last items of lists are left out, and at last whole sections, the log has all of it."""
    content = _replace_surrogates(result.to_json())
    for limit in (2000, 1000, 600, 400, 300):
        if len(encoded := _dump(_cut(content, limit))) <= TERMINATION_MESSAGE_BYTES:
            return encoded
    content = _cut(content, 300)
    for key in ("warnings", "problems"):
        _drop_last_items(content, key)
    for key in OPTIONAL_SECTIONS:
        if len(_dump(content)) > TERMINATION_MESSAGE_BYTES:
            content.pop(key, None)
    if len(_dump(content)) > TERMINATION_MESSAGE_BYTES and content.get("adapter"):
        content["adapter"].pop("targetModules", None)  # the manifest has them
    return _dump(content)


def _drop_last_items(content: dict[str, Any], key: str) -> None:
    """Take as many of the last items out of a list as are too many, and say how many they were."""
    items = content.get(key) or []
    dropped = 0
    while len(_dump(content)) > TERMINATION_MESSAGE_BYTES - 80 and len(items) > 1:
        items.pop()
        dropped += 1
    if dropped and key == "problems":
        items[-1]["message"] += f" (and {dropped} more, see the pod's log)"
    elif dropped:
        items[-1] = f"and {dropped + 1} more, see the pod's log"


def _replace_surrogates(value: Any) -> Any:
    """A copy whose texts have no half characters, which are no UTF-8: a path or a row may have brought one along."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {key: _replace_surrogates(item) for key, item in value.items()}
    return [_replace_surrogates(item) for item in value] if isinstance(value, list) else value


def _cut(value: Any, limit: int, key: str = "") -> Any:
    """A copy in which no text takes more than ``limit`` bytes of JSON; addresses and digests, which are no use in part, stay whole."""
    if isinstance(value, dict):
        return {name: _cut(item, limit, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, limit, key) for item in value]
    if not isinstance(value, str) or key in NEVER_CUT or len(_dump(value)) <= limit:
        return value
    kept = value[:limit]
    while len(_dump(kept)) > limit - 4:
        kept = kept[: -max(1, (len(_dump(kept)) - limit) // 6)]
    return f"{kept}…"


def _dump(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
