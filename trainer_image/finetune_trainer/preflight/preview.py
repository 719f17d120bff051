"""Show the texts of the first rows and the parts of them that the loss covers, without weights."""

import itertools
from dataclasses import dataclass, field
from typing import Any

from finetune_api.data_counts import Counts
from finetune_trainer.data import files, rows, sources
from finetune_trainer.data.learned_parts import Part, decode_row, label_sequences
from finetune_trainer.data.lost_content import describe_lost
from finetune_trainer.data.tokenizer import load_tokenizer
from finetune_trainer.data.tokens import IGNORED, TokenizedRow
from finetune_trainer.preflight.tokenization import fetch_tokenizer, make_encoder
from finetune_trainer.runtime.settings import Settings

EMPTY = "its answer is empty, equal to the other one, or not to be learned"
"""Why a row is left out when it is read."""


@dataclass(frozen=True)
class PreviewedRow:
    """A row as the model sees it.

    Attributes:
        location: File and line, or the number of a block of plain text.
        sequences: The parts of each sequence: ``text``, or one for each answer to the prompt, such as ``chosen``.
        tokens: Tokens of the longest sequence, as it is trained.
        learned_tokens: Tokens of all sequences that the loss covers.
        cut_tokens: Tokens beyond maxLength, which are cut off.
        problem: Why the row is not trained on; empty if it is.
    """

    location: str
    sequences: dict[str, list[Part]] = field(default_factory=dict)
    tokens: int = 0
    learned_tokens: int = 0
    cut_tokens: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Preview:
    """The first rows of a dataset and how they are read: their layout, and which columns are used.

    ``warnings`` say what the chat template leaves out of these rows.
    """

    layout: str
    columns: list[str]
    unused_columns: list[str]
    rows: list[PreviewedRow]
    warnings: list[str] = field(default_factory=list)


def make_preview(settings: Settings, count: int, patience_seconds: float) -> Preview:
    """Read and encode the first rows of the training data as the trainer does.

    Args:
        settings: The job, and where its files are.
        count: How many rows to show.
        patience_seconds: How long requests to S3 are repeated while it does not answer.

    Raises:
        Failure: The dataset or the tokenizer cannot be used.
        ArtifactError: S3 fails or refuses.
    """
    spec = settings.job.spec
    source, _ = sources.find_splits(spec.dataset)
    data_files = sources.list_files(settings, source, patience_seconds)
    reader = rows.make_reader(data_files, spec.dataset, spec.objective, source.uri)
    directory = fetch_tokenizer(settings, settings.scratch / "tokenizer", patience_seconds)
    tokenizer = load_tokenizer(directory, trust_remote_code=spec.model.trust_remote_code)
    counts, refused = Counts(), list[str]()

    def refuse(problem: str, _: str = "", /) -> None:
        refused.append(problem)

    encoder = make_encoder(spec, directory, tokenizer, reader.layout, counts, refuse)
    if reader.layout == "plain text":
        pieces = itertools.chain.from_iterable(files.read_text(file) for file in data_files)
        blocks = itertools.islice(encoder.encode_text(pieces), count)
        shown = [_preview_row(tokenizer, f"block {number}", block, 0) for number, block in enumerate(blocks, start=1)]
        return Preview(reader.layout, [], [], shown)
    columns, shown = rows.Findings(), []
    for item in itertools.islice(itertools.chain.from_iterable(map(files.read_rows, data_files)), count):
        findings, cut = rows.Findings(), counts.cut_tokens
        row = next(reader.read([item], findings), None)
        encoded = next(encoder.encode([row]), None) if row is not None else None
        columns.note_columns(list(findings.used), list(findings.unused))
        if encoded is not None:
            shown.append(_preview_row(tokenizer, item.location, encoded[1], counts.cut_tokens - cut))
        else:
            problems = [text.removeprefix(f"{item.location}: ") for text in findings.shown] + refused
            left_out = EMPTY if findings.empty else encoder.left_out
            shown.append(PreviewedRow(item.location, problem=problems[-1] if problems else f"left out: {left_out}"))
        refused.clear()
    return Preview(reader.layout, list(columns.used), list(columns.unused), shown, describe_lost(counts))


def _preview_row(tokenizer: Any, location: str, row: TokenizedRow, cut_tokens: int) -> PreviewedRow:
    sequences = label_sequences(row).values()
    return PreviewedRow(
        location,
        decode_row(tokenizer, row),
        tokens=max(len(ids) for ids, _ in sequences),
        learned_tokens=sum(label != IGNORED for _, labels in sequences for label in labels[1:]),
        cut_tokens=cut_tokens,
    )
