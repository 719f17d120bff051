"""Find and read the general text on which forgetting is measured, without torch.

``general.txt`` is the text for users who name none. It was written for this project: prose, dialogue, facts, arithmetic
and code.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data import files, sources
from finetune_trainer.data.sources import DataFile, LocalData, SplitSource
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

FIELD = "spec.evaluation.forgetting.uri"
DEFAULT_TEXT = LocalData("the trainer's own text", (Path(__file__).with_name("general.txt"),))


def find_source(spec: FineTuneJobSpec) -> SplitSource | None:
    """Return the text that the user names; None if the user names none."""
    forgetting = spec.evaluation.forgetting
    return SplitSource(forgetting.uri, "train", FIELD, FIELD) if forgetting and forgetting.uri else None


def check_readable(settings: Settings, patience_seconds: float) -> None:
    """Read the beginning of the user's text.

    Raises:
        Failure: There is no such text, or it is not UTF-8.
        ArtifactError: S3 fails or refuses.
    """
    if source := find_source(settings.job.spec):
        next(read_text(sources.list_files(settings, source, patience_seconds)), None)


def download(settings: Settings, patience_seconds: float) -> LocalData | None:
    """Download the text; None if forgetting is not measured.

    Raises:
        Failure: There is no such text.
        ArtifactError: S3 fails or refuses.
    """
    if settings.job.spec.evaluation.forgetting is None:
        return None
    source = find_source(settings.job.spec)
    return (
        sources.download(settings, source, settings.scratch / "data" / "general", patience_seconds)
        if source
        else DEFAULT_TEXT
    )


def read_text(data_files: list[DataFile]) -> Iterator[str]:
    """Read the text in pieces.

    Raises:
        Failure: A file is not text; it names the field of the forgetting text.
    """
    try:
        yield from chain.from_iterable(files.read_text(file) for file in data_files)
    except Failure as failure:
        raise Failure(failure.reason, failure.message, FIELD) from failure
