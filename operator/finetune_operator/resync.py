"""List all watched objects: before the first pass, then from time to time.

A watch that was broken does not tell what was deleted meanwhile; a list does.
"""

import asyncio
import logging

from finetune_operator.context import Context
from finetune_operator.enqueue import enqueue
from finetune_operator.kube.errors import KubeError, NotFoundError
from finetune_operator.kube.kinds import WATCHED, selector

RETRY_SECONDS = 2.0
logger = logging.getLogger(__name__)


async def resync(context: Context) -> None:
    """List every watched kind and enqueue what changed. Raises ``KubeError``."""
    namespaces: tuple[str | None, ...] = context.settings.namespaces or (None,)
    for kind in WATCHED:
        for namespace in namespaces:
            items, version = await context.kube.list(kind, namespace, selector(kind))
            changed = context.cache.replace(kind, namespace, items, version)
            if context.synced.is_set():
                context.metrics.missed.labels(kind.name).inc(len(changed))
            for resource in changed:
                enqueue(kind, resource, context)


async def first_sync(context: Context) -> None:
    """List everything once, however often that has to be tried.

    The API server may still be starting, and the CRDs may not be installed yet.
    """
    while True:
        try:
            await resync(context)
            break
        except NotFoundError as error:
            logger.warning("The CRDs of this operator are not installed yet (%s); trying again.", error)
        except KubeError as error:
            logger.warning("Cannot list the objects; trying again. %s", error)
        await asyncio.sleep(RETRY_SECONDS)
    context.synced.set()


async def resync_forever(context: Context) -> None:
    """List everything every ``resync_seconds``."""
    while True:
        await asyncio.sleep(context.settings.resync_seconds)
        try:
            await resync(context)
        except KubeError as error:
            logger.warning("The periodic list failed; the watches go on. %s", error)
