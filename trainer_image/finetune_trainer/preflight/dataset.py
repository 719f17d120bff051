"""Check that the dataset can be read, and that its first rows have what format and objective need."""

import itertools
from collections.abc import Iterator
from typing import TypeVar

from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri, parse_uri
from finetune_trainer.data import files, forgetting_text, rows, sources
from finetune_trainer.data.values import Row
from finetune_trainer.preflight.credentials import require_keys
from finetune_trainer.preflight.findings import CheckResult
from finetune_trainer.runtime.logs import log
from finetune_trainer.runtime.settings import Settings

T = TypeVar("T")
ROWS, BYTES = 1000, 4 * 1024 * 1024
"""At least this many rows and about this many bytes are checked; of a smaller dataset, all rows."""


def check_dataset(settings: Settings, result: CheckResult, patience_seconds: float) -> None:
    """Check the first rows of the dataset, of the held-out data and of the general text."""
    source = settings.job.spec.dataset
    train, held_out = sources.find_splits(source)
    separate = (held_out, forgetting_text.find_source(settings.job.spec))
    if any(isinstance(parse_uri(part.uri), S3Uri) for part in (train, *separate) if part):
        require_keys(settings, source.secret_ref, "spec.dataset.secretRef", Reason.DATASET_ACCESS_DENIED)
    data_files = sources.list_files(settings, train, patience_seconds, result.warnings.append)
    reader = rows.make_reader(data_files, source, settings.job.spec.objective, train.uri)
    result.layout = reader.layout
    result.chats, description = check_rows(reader, data_files, train.uri, result.sample)
    if source.format == "auto" and source.template is None:
        result.warnings.append(f"spec.dataset.format auto: the dataset is read as {description}")
    if held_out:
        result.chats |= check_rows(
            reader, sources.list_files(settings, held_out, patience_seconds, result.warnings.append), held_out.uri
        )[0]
    forgetting_text.check_readable(settings, patience_seconds)


def check_rows(
    reader: rows.Reader, data_files: list[sources.DataFile], uri: str, sample: list[tuple[str, Row]] | None = None
) -> tuple[bool, str]:
    """Check the first rows; return whether there are chats among them, and a text that says how the rows are read.

    About ``BYTES`` bytes of the good rows are added to ``sample``, with their locations.

    Raises:
        Failure: DATASET_INVALID, with the locations and the contents of the bad rows.
    """
    if reader.layout == "plain text":
        for _ in take_first(itertools.chain.from_iterable(files.read_text(file) for file in data_files)):
            pass
        return False, reader.layout
    findings = rows.Findings()
    first_rows = take_first(itertools.chain.from_iterable(files.read_rows(file) for file in data_files))
    usable, chats, characters = 0, False, 0
    for row in reader.read(first_rows, findings):
        usable += 1
        chats |= rows.is_chat(row)
        if sample is not None and characters < BYTES:
            sample.append((findings.location, row))
            characters += len(str(row))
    is_whole = sample is not None and findings.rows < ROWS
    rows.refuse_bad_rows(findings, reader.layout, uri, reader.columns if is_whole else None)
    description = rows.describe_layout(reader.layout, findings.used, findings.unused)
    log.info("dataset %s: %s, %d rows checked, %d of them usable", uri, description, findings.rows, usable)
    return chats, description


def take_first(items: Iterator[T]) -> Iterator[T]:
    """Yield the first ``ROWS`` rows or about ``BYTES`` bytes, whichever is more."""
    size = 0
    for number, item in enumerate(items):
        if number >= ROWS and size >= BYTES:
            return
        size += len(str(item))
        yield item
