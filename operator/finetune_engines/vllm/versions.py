"""Derive the properties of a running vLLM from its version. Only here are the releases that repaired a defect.

Each fact was read in the code of the releases, or tried. A pre-release counts as older than its release.
"""

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from finetune_engines.base import EngineVersion

LOADS_ARE_SAFE = Version("0.26")
"""First release in which requests follow adapters that a load moves between slots (vllm#47724)."""
CACHE_KNOWS_PATHS = Version("0.31")
"""First release in which the key of the prefix cache has the adapter's path as well as its name."""
PATTERNS_ARE_APPLIED = Version("0.32")
"""First release that applies rank_pattern and alpha_pattern. Older ones ignore them, so that the scale is wrong."""
_PATTERNS = ("rank_pattern", "alpha_pattern")


def judge_version(text: str | None) -> EngineVersion:
    """Return the properties of a version. One that is not known counts as the oldest.

    Args:
        text: The version as vLLM reports it, for example ``0.32.0+cpu``; None if it does not.
    """
    version = _parse_version(text)
    title = f"vLLM {text}" if text else "vLLM of an unknown version"

    def is_before(release: Version) -> bool:
        return version is None or version < release

    def find_misserved(config: Mapping[str, Any]) -> list[str]:
        patterns = [key for key in _PATTERNS if config.get(key)]
        if not patterns or not is_before(PATTERNS_ARE_APPLIED):
            return []
        return [
            f"it has {' and '.join(patterns)}, which {title} may ignore, so its scale would be wrong: "
            f"use vLLM {PATTERNS_ARE_APPLIED} or newer, or train without them"
        ]

    limits = []
    if version is None:
        limits.append(f"its version {f'{text!r} cannot be read' if text else 'is not known'}: it counts as the oldest")
    if is_before(LOADS_ARE_SAFE):
        limits.append("a load may disturb requests of other adapters: the pod leaves its Service for each load")
    if is_before(CACHE_KNOWS_PATHS):
        limits.append(
            "the prefix cache is kept by the adapter's name: a served name moves to another version by a restart only"
        )
    if is_before(PATTERNS_ARE_APPLIED):
        limits.append("adapters with rank_pattern or alpha_pattern are refused: it ignores the patterns")
    return EngineVersion(
        version=text,
        load_disturbs_requests=is_before(LOADS_ARE_SAFE),
        name_keeps_cache=is_before(CACHE_KNOWS_PATHS),
        find_misserved=find_misserved,
        limits=tuple(limits),
    )


def _parse_version(text: str | None) -> Version | None:
    try:
        return Version(text or "")
    except InvalidVersion:
        return None
