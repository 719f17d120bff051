"""Write Kubernetes Events for the few changes that a person cares about."""

import hashlib
import logging

from finetune_api.limits import EVENT_NOTE_BYTES, truncate
from finetune_api.timestamps import format_micro_time
from finetune_operator.context import Context
from finetune_operator.event_record import EventRecord
from finetune_operator.kube.errors import AlreadyExistsError, KubeError
from finetune_operator.kube.kinds import EVENT, FIELD_MANAGER, Kind, Object
from finetune_operator.logs import ABOUT

logger = logging.getLogger(__name__)


async def tell_event(kind: Kind, resource: Object, event: EventRecord, context: Context) -> None:
    """Log an event about a resource, then write it."""
    meta, level = resource["metadata"], logging.WARNING if event.type == "Warning" else logging.INFO
    about: dict[str, str | int] = {"kind": kind.name, "namespace": meta["namespace"], "name": meta["name"]}
    subject = f"{kind.name} {meta['namespace']}/{meta['name']}"
    if event.attempt is not None:
        about["attempt"] = event.attempt
        subject = f"{subject}, attempt {event.attempt}"
    extra = {ABOUT: {**about, "reason": event.reason}}
    logger.log(level, "%s: %s: %s", subject, event.reason, event.note, extra=extra)
    await _write_event(kind, resource, event, context)


async def _write_event(kind: Kind, resource: Object, event: EventRecord, context: Context) -> None:
    """Write an event about a resource. A failure is only logged: programs read the status, not events."""
    meta = resource["metadata"]
    digest = hashlib.sha256(f"{meta['uid']}/{event.reason}/{event.key}".encode()).hexdigest()[:10]
    # a character that is not ASCII has up to four bytes
    characters = EVENT_NOTE_BYTES if event.note.isascii() else EVENT_NOTE_BYTES // 4
    body = {
        "metadata": {"namespace": meta["namespace"], "name": f"{meta['name'][:230]}.{digest}"},
        "eventTime": format_micro_time(context.now()),
        "reportingController": f"{FIELD_MANAGER}.io/{FIELD_MANAGER}",
        "reportingInstance": FIELD_MANAGER,
        "type": event.type,
        "reason": event.reason,
        "action": event.action,
        "note": truncate(event.note, characters),
        "regarding": {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
    }
    try:
        await context.kube.create(EVENT, body)
    except AlreadyExistsError:
        return
    except KubeError as error:
        logger.warning("Could not write an event: %s", error)
