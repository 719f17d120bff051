"""Chat templates that write today's date into each chat: all attempts at a job write the same one, or a run resumed after midnight would learn other tokens."""

import json
import re
from datetime import UTC, date, datetime, time
from typing import Any

from finetune_api.manifest import Origin
from finetune_api.uris import S3Uri
from finetune_artifacts.store import Place
from finetune_trainer.checkpoints import run_fingerprint
from finetune_trainer.runtime.logs import log

CLOCK = "strftime_now"
"""The function of transformers by which a template asks for the time."""
DATE_COMPONENT = "day"
"""What the day is called among all that decides a run."""
_CALL = re.compile(rf"""{CLOCK}\(\s*(["'])(.*?)\1\s*\)""")


def pin_template_date(
    tokenizer: Any, output: Place, checkpoints: S3Uri, origin: Origin, day: str | None = None
) -> tuple[str | None, list[str]]:
    """Have the tokenizer's template write ``day``, or that of the first attempt; that day, None if it asks for none, and warnings. Raises ArtifactError."""
    template = tokenizer.chat_template
    if CLOCK not in json.dumps(template or ""):
        return None, []
    written = date.fromisoformat(day) if day else first_day(output, checkpoints, origin)
    tokenizer.chat_template = (
        {name: with_date(one, written) for name, one in template.items()}
        if isinstance(template, dict)
        else with_date(template, written)
    )
    log.info("the model's chat template writes a date: %s, in every attempt", written.isoformat())
    if f"{CLOCK}(" not in json.dumps(tokenizer.chat_template):
        return written.isoformat(), []
    return written.isoformat(), [
        f"the model's chat template asks for the time ({CLOCK}) in a way that cannot be pinned: a run that is resumed on another day learns other tokens"
    ]


def with_date(template: str, day: date) -> str:
    """The template with the day in the place of each call for it."""
    moment = datetime.combine(day, time())
    return _CALL.sub(lambda call: json.dumps(moment.strftime(call[2])), template)


def first_day(output: Place, checkpoints: S3Uri, origin: Origin) -> date:
    """The day that the newest run here wrote, of this very job if there is one; else today. So a job that was created again can go on, too."""
    runs = [run for run in run_fingerprint.list_previous_runs(output, checkpoints) if run.decisive.get(DATE_COMPONENT)]
    newest = max(runs, key=lambda run: (run.manifest.job == origin, run.manifest.created_at), default=None)
    return date.fromisoformat(newest.decisive[DATE_COMPONENT]) if newest else today()


def today() -> date:
    """The day, in UTC: nodes may be in other time zones."""
    return datetime.now(UTC).date()
