"""Derive the properties of a running SGLang from its version. Each fact was read in the code of the releases."""

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from finetune_engines.base import EngineVersion

OLDEST = Version("0.5.8")
"""First release whose ``/v1/models`` lists adapters with their paths, and whose ``/v1/loads`` counts requests."""
ADDRESS = 'clients ask for model "<base>:<servedName>": SGLang answers a bare adapter\'s name with the base'


def judge_version(text: str | None) -> EngineVersion:
    """Return the properties of a version, which is None if SGLang reports none.

    Each load creates a new key of the prefix cache, so that a name keeps no answers of the previous adapter. SGLang
    loads between two batches, so that running requests keep their weights.
    """

    def find_misserved(config: Mapping[str, Any]) -> list[str]:
        return [] if _is_supported(text) else [_describe_too_old(text)]

    limits = [ADDRESS] if _is_supported(text) else [_describe_too_old(text), ADDRESS]
    return EngineVersion(
        version=text,
        load_disturbs_requests=False,
        name_keeps_cache=False,
        find_misserved=find_misserved,
        limits=tuple(limits),
    )


def _is_supported(text: str | None) -> bool:
    try:
        return text is not None and Version(text) >= OLDEST
    except InvalidVersion:
        return False


def _describe_too_old(text: str | None) -> str:
    title = f"SGLang {text}" if text else "this SGLang, which tells no version,"
    return f"{title} does not tell what it serves and how many requests run: use SGLang {OLDEST} or newer"
