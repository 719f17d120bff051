"""kopf's part: watch the kinds, keep the credentials fresh, and hand every event on as a nudge. No other file but the composition root knows kopf."""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from finetune_operator import observe
from finetune_operator.context import Context
from finetune_operator.kube.connect import Configuration, bearer_token
from finetune_operator.kube.kinds import WATCHED, Kind, selector

CREDENTIALS_SECONDS = 300
WATCH_SECONDS = 300
RECONNECT_SECONDS = (0.2, 0.5, 1, 2, 3, *(5,) * 720)
"""How long a watch waits after each failure in a row; after an hour of them the process ends, and starts anew."""


def registry(configuration: Configuration, context: Context) -> kopf.OperatorRegistry:
    """Handlers for every watched kind, and for kopf's own login."""
    handlers = kopf.OperatorRegistry()
    for kind in WATCHED:
        _watch(handlers, kind, context)

    @kopf.on.login(registry=handlers)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(configuration)

    return handlers


def _watch(handlers: kopf.OperatorRegistry, kind: Kind, context: Context) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=handlers)
    async def event(event: kopf.RawEvent, **_: Any) -> None:
        item = dict(event["object"])
        if event["type"] == "DELETED":
            observe.deleted(kind, item, context)
        else:
            observe.changed(kind, item, context)


async def connection(configuration: Configuration) -> kopf.ConnectionInfo:
    """The client's configuration in kopf's words; kopf asks again when it expires, and so reads the service account's token anew."""
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        token=await bearer_token(configuration),
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        expiration=datetime.now(UTC) + timedelta(seconds=CREDENTIALS_SECONDS),
    )


class NoDiffBase(kopf.DiffBaseStorage):
    """kopf copies every object twice to find what changed in it; nobody asks here, and that was half of the operator's CPU time."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        """Every object looks the same."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """Nothing was stored."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is written on anyone's object."""


class NoProgress(kopf.ProgressStorage):
    """Handlers that only nudge have no progress to keep."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        """Nothing was stored."""

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing is written on anyone's object."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Nothing is there."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Nothing is written on anyone's object."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Nothing of ours is in it."""
        return essence


def kopf_settings() -> kopf.OperatorSettings:
    """kopf writes nothing of its own: no events, no finalizers, no annotations, no peering; and it is silent on success."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.persistence.progress_storage = NoProgress()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 1.0
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.chunk_size = 500
    settings.networking.error_backoffs = RECONNECT_SECONDS
    for kind in WATCHED:
        only_ours = selector(kind)
        if only_ours:
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = only_ours
    logging.getLogger("kopf").setLevel(logging.WARNING)
    return settings
