"""The general text on which forgetting is measured: where it is, and whether it can be read. Knows no torch.

``general.txt``, the text that is taken where the user names none, was written for this project: prose, dialogue, facts, arithmetic and code.
"""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_trainer.data import files, sources
from finetune_trainer.data.sources import Data, DataFile, Part
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.settings import Settings

FIELD = "spec.evaluation.forgetting.uri"
OWN = Data("the trainer's own text", (Path(__file__).with_name("general.txt"),))


def locate(spec: FineTuneJobSpec) -> Part | None:
    """The text that the user names, if one is named."""
    wanted = spec.evaluation.forgetting
    return Part(wanted.uri, "train", FIELD, FIELD) if wanted and wanted.uri else None


def check(settings: Settings, patience_seconds: float) -> None:
    """Read the beginning of the text. Raises Failure and ArtifactError."""
    if named := locate(settings.job.spec):
        next(pieces(sources.files(settings, named, patience_seconds)), None)


def fetch(settings: Settings, patience_seconds: float) -> Data | None:
    """The text on the local disk; None where forgetting is not measured. Raises Failure and ArtifactError."""
    if settings.job.spec.evaluation.forgetting is None:
        return None
    named = locate(settings.job.spec)
    return sources.fetch(settings, named, settings.scratch / "data" / "general", patience_seconds) if named else OWN


def pieces(found: list[DataFile]) -> Iterator[str]:
    """The text, piece by piece. Raises Failure, which names our field, for what is no text."""
    try:
        yield from chain.from_iterable(files.pieces(file) for file in found)
    except Failure as failure:
        raise Failure(failure.reason, failure.message, FIELD) from failure
