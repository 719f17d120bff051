"""List all watched objects: before the first pass, then from time to time.

A broken watch misses deletions, which a list shows.
"""

import asyncio
import logging

from finetune_operator.context import Context
from finetune_operator.enqueue import enqueue
from finetune_operator.kube.errors import KubeError, NotFoundError
from finetune_operator.kube.kinds import WATCHED, Kind, Object, selector

RETRY_SECONDS = 2.0
Versions = dict[tuple[Kind, str | None], str]
"""The resource version of the list of each kind, in one namespace or in all."""
logger = logging.getLogger(__name__)


async def resync(context: Context) -> Versions:
    """List every watched kind and enqueue what changed; return the versions of the lists. Raises ``KubeError``."""
    namespaces: tuple[str | None, ...] = context.settings.namespaces or (None,)
    return {
        (kind, namespace): await list_kind(kind, namespace, context) for kind in WATCHED for namespace in namespaces
    }


async def list_kind(kind: Kind, namespace: str | None, context: Context) -> str:
    """List a kind and enqueue what changed; return the resource version of the list. Raises ``KubeError``.

    Only one page of whole objects is in memory at a time.
    """
    uids: set[str] = set()
    version = ""
    async for page, page_version in context.kube.list_pages(kind, namespace, selector(kind)):
        version = page_version
        uids |= {resource["metadata"]["uid"] for resource in page}
        _enqueue_changed(kind, [resource for resource in page if context.cache.put(kind, resource)], context)
    _enqueue_changed(kind, context.cache.drop_vanished(kind, namespace, uids, int(version)), context)
    return version


def _enqueue_changed(kind: Kind, changed: list[Object], context: Context) -> None:
    if context.synced.is_set():
        context.metrics.missed.labels(kind.name).inc(len(changed))
    for resource in changed:
        enqueue(kind, resource, context)


async def first_sync(context: Context) -> Versions:
    """List everything once, and repeat that until it succeeds; return the versions of the lists.

    At first the API server may still be starting, and the CRDs may not be installed yet.
    """
    while True:
        try:
            versions = await resync(context)
        except NotFoundError as error:
            logger.warning("The CRDs of this operator are not installed yet (%s); trying again.", error)
        except KubeError as error:
            logger.warning("Cannot list the objects; trying again. %s", error)
        else:
            context.synced.set()
            return versions
        await asyncio.sleep(RETRY_SECONDS)


async def resync_forever(context: Context) -> None:
    """List everything every ``resync_seconds``."""
    while True:
        await asyncio.sleep(context.settings.resync_seconds)
        try:
            await resync(context)
        except KubeError as error:
            logger.warning("The periodic list failed; the watches continue. %s", error)
