"""Watch our own kinds with kopf, ingest every event, and keep kopf's credentials fresh.

Only this module and ``__main__`` know kopf.
"""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from finetune_operator.context import Context
from finetune_operator.ingest import ingest_change, ingest_deletion
from finetune_operator.kube.client import PAGE, RECONNECT_SECONDS, WATCH_SECONDS
from finetune_operator.kube.connect import Configuration, read_bearer_token
from finetune_operator.kube.kinds import CUSTOM, Kind

CREDENTIALS_SECONDS = 300


def build_registry(configuration: Configuration, context: Context) -> kopf.OperatorRegistry:
    """Build the handlers of our own kinds, and of kopf's login."""
    handlers = kopf.OperatorRegistry()
    for kind in CUSTOM:
        _watch(handlers, kind, context)

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await build_connection(configuration)

    return handlers


def _watch(handlers: kopf.OperatorRegistry, kind: Kind, context: Context) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=handlers)
    async def event(event: kopf.RawEvent, **_: Any) -> None:
        resource = dict(event["object"])
        if event["type"] == "DELETED":
            ingest_deletion(kind, resource, context)
        else:
            ingest_change(kind, resource, context)


async def build_connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """Build kopf's connection to the API server.

    kopf asks for another one when it expires, and so gets the service account's new token.
    """
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=await read_bearer_token(configuration),
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        expiration=datetime.now(UTC) + timedelta(seconds=CREDENTIALS_SECONDS),
    )


class NoDiffBase(kopf.DiffBaseStorage):
    """Keep kopf from copying every object to find what changed in it.

    Nothing needs the difference, and the copies took half of the operator's CPU time.
    """

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        """Return the same for every object."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Return nothing: nothing is stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Write nothing on the object."""


class NoProgress(kopf.ProgressStorage):
    """Keep kopf from storing the progress of handlers: they have none."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        """Return nothing: nothing is stored."""

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Write nothing on the object."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Delete nothing: nothing is stored."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Write nothing on the object."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Return the essence unchanged."""
        return essence


def build_kopf_settings() -> kopf.OperatorSettings:
    """Build settings with which kopf writes nothing and logs no successes.

    It then makes no events, finalizers and annotations, and does no peering.
    """
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    # a worker keeps the last object that it has seen for this time
    settings.queueing.idle_timeout = 0.1
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.chunk_size = PAGE
    settings.networking.error_backoffs = RECONNECT_SECONDS
    logging.getLogger("kopf").setLevel(logging.WARNING)
    return settings
