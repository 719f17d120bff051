"""Run the workers. Each takes a key, makes one pass over it, and enqueues it again when the next pass is due."""

import asyncio
import logging
import time
from collections.abc import Mapping

from finetune_operator.context import Context
from finetune_operator.kube.errors import ConflictError, KubeError
from finetune_operator.kube.kinds import Key
from finetune_operator.reconcile.dispatch import Reconciler

logger = logging.getLogger(__name__)


async def work(reconcilers: Mapping[str, Reconciler], context: Context) -> None:
    """Make passes without end, but skip namespaces in which another installation works."""
    while True:
        key = await context.queue.get()
        try:
            if key[1] not in context.leadership.left_out:
                await make_pass(key, reconcilers[key[0]], context)
        finally:
            context.queue.done(key)


async def make_pass(key: Key, reconcile: Reconciler, context: Context) -> None:
    """Make one pass. An error is logged, and the key is retried after a backoff without holding up other keys."""
    begin = time.monotonic()
    context.metrics.queue_depth.set(len(context.queue))
    result = "ok"
    try:
        outcome = await reconcile(key, context)
    except ConflictError as error:
        result = "conflict"
        logger.debug("%s %s/%s changed meanwhile, deciding again: %s", *key, error)
        context.queue.retry(key)
    except KubeError as error:
        result = "error"
        logger.warning("%s %s/%s: %s; next try in %.1f s", *key, error, context.queue.retry(key))
    except Exception:
        result = "bug"
        logger.exception("%s %s/%s: unexpected error; next try in %.1f s", *key, context.queue.retry(key))
    else:
        context.queue.forget(key)
        if outcome.requeue_after is not None:
            context.queue.add_after(key, outcome.requeue_after)
    finally:
        context.metrics.reconciles.labels(key[0], result).inc()
        context.metrics.reconcile_seconds.labels(key[0]).observe(time.monotonic() - begin)
        context.metrics.note_pass()


async def run_workers(reconcilers: Mapping[str, Reconciler], context: Context) -> None:
    """Run as many workers as the settings say."""
    async with asyncio.TaskGroup() as group:
        for _ in range(context.settings.workers):
            group.create_task(work(reconcilers, context))
