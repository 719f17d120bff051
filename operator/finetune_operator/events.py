"""Kubernetes Events for the few transitions that a person cares about; each is a write, so a good run makes very few."""

import hashlib
import logging

from finetune_operator.conditions import truncate
from finetune_operator.context import Context
from finetune_operator.kube.errors import AlreadyExistsError, KubeError
from finetune_operator.kube.kinds import EVENT, FIELD_MANAGER, Kind, Object
from finetune_operator.notes import Note

NOTE_BYTES = 1000
logger = logging.getLogger(__name__)


async def post(kind: Kind, item: Object, note: Note, context: Context) -> None:
    """Write the event. A failure is logged only: events are a courtesy, status is the truth."""
    meta = item["metadata"]
    digest = hashlib.sha256(f"{meta['uid']}/{note.reason}/{note.once}".encode()).hexdigest()[:10]
    event = {
        "metadata": {"namespace": meta["namespace"], "name": f"{meta['name'][:230]}.{digest}"},
        "eventTime": context.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{FIELD_MANAGER}.io/{FIELD_MANAGER}",
        "reportingInstance": FIELD_MANAGER,
        "type": note.type,
        "reason": note.reason,
        "action": note.action,
        "note": truncate(note.text, NOTE_BYTES // 4 if not note.text.isascii() else NOTE_BYTES),
        "regarding": {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        },
    }
    try:
        await context.kube.create(EVENT, event)
    except AlreadyExistsError:
        return
    except KubeError as error:
        logger.warning("Could not write an event: %s", error)
