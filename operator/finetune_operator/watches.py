"""Watch Jobs, pods, ConfigMaps, Deployments and StatefulSets of ours.

There are many more of them than of our own kinds, which kopf watches. kopf would keep a task, a queue and a memory for
each of them, which the operator does not need.
"""

import asyncio
import logging

from finetune_operator.context import Context
from finetune_operator.ingest import ingest_change, ingest_deletion
from finetune_operator.kube.client import RECONNECT_SECONDS
from finetune_operator.kube.errors import ExpiredError, KubeError
from finetune_operator.kube.kinds import Kind, selector
from finetune_operator.resync import list_kind

logger = logging.getLogger(__name__)


class RestoredError(Exception):
    """The API server was restored to an older state, so the cache may have objects that do not exist."""


async def watch_forever(kind: Kind, namespace: str | None, version: str, context: Context) -> None:
    """Ingest every event of a kind after a resource version, in one namespace or in all.

    Raises ``KubeError`` after an hour of failures, and ``RestoredError``.
    """
    failures = 0
    while True:
        try:
            # a restored API server would send no event until its versions are as high again
            if failures and int(await context.kube.read_version(kind, namespace, selector(kind))) < int(version):
                raise RestoredError(f"the API server has an earlier state of {kind.plural} than {version}")
            async for event, resource in context.kube.watch(kind, namespace, version, selector(kind)):
                failures, version = 0, resource["metadata"]["resourceVersion"]
                if event == "DELETED":
                    ingest_deletion(kind, resource, context)
                elif event != "BOOKMARK":
                    ingest_change(kind, resource, context)
        except KubeError as error:
            if failures == len(RECONNECT_SECONDS):
                raise
            logger.info("A watch broke; it continues in %s s. %s", RECONNECT_SECONDS[failures], error)
            await asyncio.sleep(RECONNECT_SECONDS[failures])
            failures += 1
            if isinstance(error, ExpiredError):
                version = await list_kind(kind, namespace, context)
