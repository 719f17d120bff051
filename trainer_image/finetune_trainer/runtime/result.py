"""Write the result of a pod as JSON of at most 4 KiB into its termination log."""

import json
import logging
from pathlib import Path
from typing import Any

from finetune_api.limits import TERMINATION_MESSAGE_BYTES
from finetune_api.messages import CleanUpResult, MergeResult, PreflightResult, TrainerResult

log = logging.getLogger(__name__)
PodResult = CleanUpResult | MergeResult | PreflightResult | TrainerResult
NEVER_CUT = ("uri", "hub", "digest")
"""Fields that are not cut, because a part of an address or of a digest is useless."""
OPTIONAL_SECTIONS = ("data", "progress", "usage", "report", "warnings", "evaluation")
"""Sections that are dropped, in this order, if the result is too long even with short texts."""


def write(result: PodResult, path: Path) -> None:
    """Write the result to the termination log.

    A failure to write is only logged, because the exit code also gives the reason.
    """
    try:
        path.write_bytes(encode(result))
    except OSError as error:
        log.warning("the result cannot be written to %s: %s", path, error.strerror)


def encode(result: PodResult) -> bytes:
    """Encode the result as JSON of at most 4 KiB.

    Long texts are cut first, then the last items of lists are dropped, then whole sections. The log has all of it.
    """
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
    """Drop the last items of a list until the result is short enough, and note how many were dropped."""
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
    """Copy a value and replace lone surrogates in its texts, which UTF-8 cannot encode."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {key: _replace_surrogates(item) for key, item in value.items()}
    return [_replace_surrogates(item) for item in value] if isinstance(value, list) else value


def _cut(value: Any, limit: int, key: str = "") -> Any:
    """Copy a value and cut its texts to ``limit`` bytes of JSON each, except for the fields in NEVER_CUT."""
    if isinstance(value, dict):
        return {name: _cut(item, limit, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_cut(item, limit, key) for item in value]
    if not isinstance(value, str) or key in NEVER_CUT or len(_dump(value)) <= limit:
        return value
    text = value[:limit]
    while len(_dump(text)) > limit - 4:
        text = text[: -max(1, (len(_dump(text)) - limit) // 6)]
    return f"{text}…"


def _dump(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
