"""Compute a digest of all that decides a preflight's result: jobs with the same digest share a result."""

import hashlib
import json
from typing import Any

from finetune_api.finetunejob.editable import EDITABLE
from finetune_operator.kube.kinds import Object
from finetune_operator.settings import Settings

UNREAD = EDITABLE | {
    "checkpoint",
    "training.learningRate",
    "training.scheduler",
    "training.schedulerArgs",
    "training.warmupRatio",
    "training.weightDecay",
    "training.maxGradNorm",
    "training.seed",
}
"""Paths below ``spec`` that no preflight reads. All others count, new ones too."""
DIGITS = 16


def compute_preflight_digest(spec: Object, settings: Settings) -> str | None:
    """Compute the digest for a spec, as the API server has it with its defaults.

    Returns None if each such job needs a preflight of its own: a prefix that the user chose may have another job's
    adapter, and a cache may have lost the model since.
    """
    if spec["output"].get("s3", {}).get("prefix") is not None or spec["model"].get("cache") is not None:
        return None
    pods = settings.pods.model_dump(mode="json", exclude_defaults=True)
    # the image's tag is another one after an upgrade
    parts = [_leave_out_unread(spec), settings.operator_image, settings.simulated_gpus, pods]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _leave_out_unread(section: Object, path: str = "") -> dict[str, Any]:
    return {
        name: _leave_out_unread(value, f"{path}{name}.") if isinstance(value, dict) else value
        for name, value in section.items()
        if f"{path}{name}" not in UNREAD
    }
