"""Find the warning Events that say why a Job has no pod, or why a pod gets no volume. No status says it.

Events are not watched, because a cluster has very many. Those of a namespace are listed when they are needed.
"""

import asyncio
import logging
import time
from collections import defaultdict

from finetune_operator.kube.client import Kube
from finetune_operator.kube.errors import KubeError
from finetune_operator.kube.kinds import EVENT, JOB, Object

POD_REFUSED = "FailedCreate"
"""Reason of an Event of the Job controller: the API server refused the pod."""
FRESH_SECONDS = 3.0
"""For how long a list of a namespace's warnings is reused."""
logger = logging.getLogger(__name__)


class WarningEvents:
    """The newest warning about each object, by namespace."""

    def __init__(self, kube: Kube) -> None:
        """Create it without warnings."""
        self._kube = kube
        self._warnings: dict[str, tuple[float, dict[str, str]]] = {}
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def find(self, namespace: str) -> dict[str, str]:
        """Return the text of the newest warning about each object of a namespace, by the object's uid.

        It is empty or older if the events cannot be listed: warnings only explain, and no decision depends on them.
        """
        async with self._locks[namespace]:
            at, warnings = self._warnings.get(namespace, (-FRESH_SECONDS, {}))
            if time.monotonic() - at >= FRESH_SECONDS:
                try:
                    events, _ = await self._kube.list(EVENT, namespace, fields="type=Warning")
                    warnings = select_newest(events)
                except KubeError as error:
                    logger.warning("Cannot list events, which say why pods do not start: %s", error)
                self._warnings[namespace] = time.monotonic(), warnings
            return warnings


def select_newest(events: list[Object]) -> dict[str, str]:
    """Select the text of the newest event about each object, by the object's uid.

    Of a Job only those count that say why it has no pod: others say why a pod failed.
    """
    texts = {}
    for event in sorted(events, key=_read_time):
        regarding = event.get("regarding") or {}
        if regarding.get("kind") == JOB.name and event.get("reason") != POD_REFUSED:
            continue
        if regarding.get("uid") and event.get("note"):
            texts[regarding["uid"]] = str(event["note"]).strip()
    return texts


def _read_time(event: Object) -> str:
    """Return when an event last happened; writers of events use different fields for it."""
    series = (event.get("series") or {}).get("lastObservedTime")
    return series or event.get("deprecatedLastTimestamp") or event.get("eventTime") or ""
