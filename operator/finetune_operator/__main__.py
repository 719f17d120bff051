"""The composition root: the environment is read, the parts are built and run, here and nowhere else."""

import asyncio
import logging
import os
import sys

import kopf

from finetune_operator import handlers
from finetune_operator.context import Context
from finetune_operator.health import Health
from finetune_operator.kube.client import Kube
from finetune_operator.kube.connect import NoClusterError, configuration
from finetune_operator.metrics import Metrics
from finetune_operator.policies.budget import WriteBudget
from finetune_operator.queue import KeyedQueue
from finetune_operator.reconcile.dispatch import RECONCILERS
from finetune_operator.report.server import application, serve
from finetune_operator.report.store import Reports
from finetune_operator.report.tokens import Tokens
from finetune_operator.resync import first_sync, resync_forever
from finetune_operator.settings import Settings, SettingsError
from finetune_operator.store import Store
from finetune_operator.worker import run_workers

logger = logging.getLogger("finetune_operator")


async def run(settings: Settings) -> None:
    """Run the operator until it is told to stop (SIGTERM, SIGINT) or one of its parts fails."""
    client = await configuration(settings.kubeconfig)
    metrics = Metrics()
    kube = Kube(client, metrics.observe_call)
    context = Context(
        settings=settings,
        kube=kube,
        store=Store(),
        queue=KeyedQueue(),
        reports=Reports(),
        metrics=metrics,
        budget=WriteBudget(settings.progress_writes_per_second, settings.progress_interval_seconds),
    )
    health = Health(context)
    app = application(context, Tokens(kube.review_token), health.wrong)
    runner, port = await serve(app, settings.listen_host, settings.listen_port)
    logger.info("Listening on port %d; watching %s.", port, ", ".join(settings.namespaces) or "all namespaces")
    parts = [
        asyncio.create_task(first_sync(context), name="first list"),
        asyncio.create_task(resync_forever(context), name="resync"),
        asyncio.create_task(run_workers(RECONCILERS, context), name="workers"),
        asyncio.create_task(health.beat_forever(), name="heartbeat"),
    ]
    try:
        await parts[0]
        watches = asyncio.create_task(
            kopf.operator(
                registry=handlers.registry(client, context),
                settings=handlers.kopf_settings(),
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                standalone=True,
            ),
            name="watches",
        )
        parts.append(watches)
        done, _ = await asyncio.wait(parts[1:], return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)
        await runner.cleanup()
        await kube.close()


def main() -> int:
    """Entry point of ``python -m finetune_operator``."""
    try:
        settings = Settings.of(os.environ)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201 -- logging is not configured yet
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(settings))
    except NoClusterError as error:
        logger.error("Cannot find the API server. %s Run in a pod, or set FINETUNE_OPERATOR_KUBECONFIG.", error)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
