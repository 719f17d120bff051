"""Run the operator: read the environment, build its parts and run them."""

import asyncio
import gc
import logging
import os
import sys
from functools import partial
from typing import Any

import kopf

from finetune_operator import handlers, logs
from finetune_operator.analyses.running import Analyses
from finetune_operator.cache import Cache
from finetune_operator.context import Context
from finetune_operator.enqueue import enqueue_namespace
from finetune_operator.health import Health
from finetune_operator.kube.client import Kube
from finetune_operator.kube.connect import NoClusterError, load_configuration
from finetune_operator.kube.kinds import LABELLED
from finetune_operator.leadership import Leadership, LeadershipLostError
from finetune_operator.metrics import Metrics
from finetune_operator.pod_reports import PodReports
from finetune_operator.policies.budget import WriteBudget
from finetune_operator.queue import KeyedQueue
from finetune_operator.reconcile.dispatch import RECONCILERS
from finetune_operator.resync import first_sync, resync_forever
from finetune_operator.server.application import build_application, serve
from finetune_operator.server.tokens import PublishedKeys, Tokens, review
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.warning_events import WarningEvents
from finetune_operator.watches import RestoredError, watch_forever
from finetune_operator.worker import run_workers

logger = logging.getLogger("finetune_operator")
CONTAINERS_PER_COLLECTION = 50_000
"""Number of new container objects after which the garbage collector runs.
A page of a list makes 100,000 of them, none in a cycle. By default the collector would look 150 times through them,
which takes half of the time of a start."""


async def run(settings: Settings) -> None:
    """Run the operator until SIGTERM or SIGINT, or until one of its parts fails."""
    client = await load_configuration(settings.kubeconfig)
    metrics = Metrics()
    kube = Kube(client, metrics.count_call)
    leadership = Leadership(kube, settings)
    kube.may_write = leadership.may_write
    context = Context(
        settings=settings,
        kube=kube,
        cache=Cache(),
        queue=KeyedQueue(),
        pod_reports=PodReports(),
        metrics=metrics,
        leadership=leadership,
        budget=WriteBudget(settings.progress_writes_per_second, settings.progress_interval_seconds),
        warnings=WarningEvents(kube),
        analyses=Analyses(kube),
    )
    health = Health(context)
    tokens = Tokens(PublishedKeys(kube).identify if settings.namespaces else partial(review, kube))
    app = build_application(context, tokens, health.find_fault)
    runner, port = await serve(app, settings.listen_host, settings.listen_port)
    logger.info("Listening on port %d; watching %s.", port, ", ".join(settings.namespaces) or "all namespaces")
    leads = await leadership.try_to_lead()
    listing = asyncio.create_task(first_sync(context), name="first list")
    tasks: list[asyncio.Task[Any]] = [
        listing,
        asyncio.create_task(resync_forever(context), name="resync"),
        asyncio.create_task(hold_leases(context), name="leases"),
        asyncio.create_task(work_while_leading(context, led_before_list=leads), name="workers"),
        asyncio.create_task(health.beat_forever(), name="heartbeat"),
    ]
    try:
        versions = await listing
        kopf_watches = asyncio.create_task(
            kopf.operator(
                registry=handlers.build_registry(client, context),
                settings=handlers.build_kopf_settings(),
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                standalone=True,
            ),
            name="watches of our own kinds",
        )
        tasks += [
            kopf_watches,
            *(
                asyncio.create_task(watch_forever(kind, namespace, version, context), name=f"watch of {kind.plural}")
                for (kind, namespace), version in versions.items()
                if kind in LABELLED
            ),
        ]
        done, _ = await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await leadership.give_back()
        await runner.cleanup()
        await kube.close()


async def hold_leases(context: Context) -> None:
    """Wait for the Leases, then renew them without end. Raises ``LeadershipLostError``.

    A replica fills its cache before it takes over, so that its first pass begins at once.
    """
    if not context.leadership.leads.is_set():
        await context.synced.wait()
    await context.leadership.acquire()
    await context.leadership.keep(lambda namespace: enqueue_namespace(namespace, context))


async def work_while_leading(context: Context, *, led_before_list: bool) -> None:
    """Make passes while this replica leads, on a cache that has everything that an earlier leader wrote.

    If this replica began to lead after its first list, everything is listed again.
    """
    await context.synced.wait()
    await context.leadership.leads.wait()
    if not led_before_list:
        await first_sync(context)
    await run_workers(RECONCILERS, context)


def main() -> int:
    """Run ``python -m finetune_operator``; return its exit code."""
    try:
        settings = Settings.of(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- logging is not configured yet
        return 2
    logs.configure(settings.log_level, settings.log_format)
    gc.freeze()
    gc.set_threshold(CONTAINERS_PER_COLLECTION)
    try:
        asyncio.run(run(settings))
    except NoClusterError as error:
        logger.error("Cannot find the API server. %s Run in a pod, or set FINETUNE_OPERATOR_KUBECONFIG.", error)
        return 2
    except LeadershipLostError as error:
        logger.error("Ending: %s. Another replica may work now.", error)
        return 1
    except RestoredError as error:
        logger.error("Ending, so that a new process lists everything again: %s.", error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
