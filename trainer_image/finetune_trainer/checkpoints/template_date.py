"""Pin the date that a chat template writes: all attempts train on the same tokens, even after midnight."""

import json
import re
from datetime import UTC, date, datetime, time
from typing import Any

from finetune_api.manifest import Origin
from finetune_api.uris import StorageUri
from finetune_artifacts.storage import Storage
from finetune_trainer.checkpoints.run_fingerprint import list_previous_runs
from finetune_trainer.runtime.logs import log

CLOCK = "strftime_now"
"""The function that transformers gives to chat templates for today's date."""
DATE_COMPONENT = "day"
"""The name of the date among the components of the run's fingerprint."""
_CALL = re.compile(rf"""{CLOCK}\(\s*(["'])(.*?)\1\s*\)""")


def pin_template_date(
    tokenizer: Any, output: Storage, checkpoints: StorageUri, origin: Origin, pinned: str | None = None
) -> tuple[str | None, list[str]]:
    """Replace each call of the clock in the tokenizer's chat template by a fixed date.

    Args:
        tokenizer: Its chat template is changed in place.
        output: The storage of the checkpoints.
        checkpoints: The URI of the job's checkpoints.
        origin: The job.
        pinned: The date as ISO 8601, if another process of this attempt has chosen it; else that of the first attempt
            is used, or today's.

    Returns:
        The date as ISO 8601, None if the template writes no date, and warnings.

    Raises:
        ArtifactError: The storage fails or refuses.
    """
    template = tokenizer.chat_template
    if CLOCK not in json.dumps(template or ""):
        return None, []
    day = date.fromisoformat(pinned) if pinned else first_date(output, checkpoints, origin)
    tokenizer.chat_template = (
        {name: write_date(text, day) for name, text in template.items()}
        if isinstance(template, dict)
        else write_date(template, day)
    )
    log.info("the model's chat template writes a date: %s, in every attempt", day.isoformat())
    if f"{CLOCK}(" not in json.dumps(tokenizer.chat_template):
        return day.isoformat(), []
    return day.isoformat(), [
        f"the model's chat template asks for the time ({CLOCK}) in a way that cannot be pinned: a run that is resumed "
        "on another day learns other tokens"
    ]


def write_date(template: str, day: date) -> str:
    """Return the template with the formatted date in the place of each call of the clock."""
    midnight = datetime.combine(day, time())
    return _CALL.sub(lambda call: json.dumps(midnight.strftime(call[2])), template)


def first_date(output: Storage, checkpoints: StorageUri, origin: Origin) -> date:
    """Return the date of the newest run at this prefix, this job's before others'; today if there is none.

    In this way a job that was deleted and created again can also continue.
    """
    runs = [run for run in list_previous_runs(output, checkpoints) if run.components.get(DATE_COMPONENT)]
    newest = max(runs, key=lambda run: (run.manifest.job == origin, run.manifest.created_at), default=None)
    return date.fromisoformat(newest.components[DATE_COMPONENT]) if newest else today()


def today() -> date:
    """Return today's date in UTC, since nodes may be in several time zones."""
    return datetime.now(UTC).date()
