"""Prepare a dataset: tokenize it, split off the held-out rows, count and warn."""

import random
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]

from finetune_api.data_counts import LENGTHS, Counts
from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of_file
from finetune_trainer.data import rows, token_cache
from finetune_trainer.data.columns import Layout
from finetune_trainer.data.learned_parts import Part, decode_row, label_sequences
from finetune_trainer.data.lost_content import describe_lost
from finetune_trainer.data.sources import Inputs, list_local_files
from finetune_trainer.data.tokens import IGNORED, TokenizedRow
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

DEFAULT_FRACTION, DEFAULT_HELD_OUT = 0.1, 200
"""Share of the rows that are held out if the job names none, and at most how many."""
SHOWN, SHOWN_TOKENS = 3, 1000
"""How many sequences the report shows, and how many tokens of each."""


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and the label of each that the loss expects (``IGNORED`` for none)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """Count the tokens that the loss uses: never the first one, which nothing predicts."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class Examples:
    """All sequences of a run.

    ``train`` is memory-mapped, with the columns of TRL. ``held_out`` has at most ``evaluation.maxRows`` sequences for a
    language model (of two answers the better one), and ``held_out_rows`` the same rows with the columns of ``train``.
    ``digests`` are those of the dataset's files, by name.
    """

    train: datasets.Dataset
    held_out: list[Example]
    held_out_rows: list[TokenizedRow]
    layout: Layout
    counts: Counts
    digests: list[tuple[str, str]]
    cache_key: str
    """Hash of everything that determines the training sequences: rows, tokenizer, chat template, and request."""
    warnings: list[str] = field(default_factory=list)
    forgetting_text: list[Example] = field(default_factory=list)
    """Sequences of the text on which forgetting is measured."""
    shown: list[dict[str, list[Part]]] = field(default_factory=list)
    """The first sequences, decoded for the report."""


Hashes = numpy.ndarray[Any, numpy.dtype[numpy.int64]]
"""A hash of each row of a table."""


@dataclass(frozen=True)
class Split:
    """The sequences to train on and the held-out ones, and the hashes of their rows."""

    learned: datasets.Dataset
    learned_hashes: Hashes
    held_out: datasets.Dataset
    held_out_hashes: Hashes


def prepare_dataset(request: token_cache.DatasetRequest, inputs: Inputs, tokenizer: Any, cache: Path) -> Examples:
    """Read, check, tokenize and split the dataset.

    Args:
        request: Describes the sequences to make.
        inputs: The local files.
        tokenizer: The model's tokenizer.
        cache: Directory of the sequences; sequences of an earlier attempt are reused.

    Raises:
        Failure: DATASET_INVALID for bad rows, or if nothing can be learned.
    """
    source = request.source
    reader = rows.make_reader(list_local_files(inputs.dataset), source, request.objective, inputs.dataset.uri)
    parts = [part for part in (inputs.dataset, inputs.validation) if part]
    digests = [[(f"{part.uri} {path.name}", digest_of_file(path)) for path in part.files] for part in parts]
    train = token_cache.load_or_write_table(
        inputs.dataset, digests[0], request, reader, tokenizer, cache, source.max_samples
    )
    if not len(train.rows):
        raise Failure(
            Reason.DATASET_INVALID,
            f"{source.uri} has no row that the loss can learn from "
            f"({_describe_counts(train.counts, request.max_length)})",
            "spec.dataset.uri",
        )
    counts, warnings = train.counts, []
    counts.layout = reader.layout
    if inputs.validation is not None:
        validation = token_cache.load_or_write_table(
            inputs.validation, digests[1], request, reader, tokenizer, cache, None
        )
        split = Split(train.rows, train.row_hashes, validation.rows, validation.row_hashes)
        if validation.counts.truncated or validation.counts.dropped or validation.counts.empty:
            warnings.append(f"held-out data: {_describe_counts(validation.counts, request.max_length)}")
    else:
        split = _split_off(train, source.validation.fraction if source.validation else None, request.seed)
    _count_split(counts, split)
    learned, held_out = split.learned, split.held_out
    if not len(held_out):
        warnings.append("there is only one row: base and adapter are compared on the row that was trained on")
        held_out = learned.select([0])
    compared = [dict(row) for row in held_out.select(range(min(len(held_out), request.max_held_out)))]
    if len(held_out) > len(compared):
        warnings.append(
            f"of {len(held_out)} held-out rows the first {len(compared)} are used: "
            "raise spec.evaluation.maxRows to use more, or lower spec.dataset.validation.fraction to train on more"
        )
    warnings += _list_warnings(counts, reader.layout, tokenizer, request)
    log.info(
        "data: %s, %d rows; %d sequences to train on with %d tokens (%d learned), %d held out",
        _describe_layout(counts),
        counts.rows,
        counts.sequences,
        counts.tokens,
        counts.learned_tokens,
        counts.held_out,
    )
    log.info("tokens of a row: %s; the longest has %d", format_lengths(counts), counts.longest)
    return Examples(
        learned,
        [_to_example(row) for row in compared],
        compared,
        reader.layout,
        counts,
        list(chain.from_iterable(digests)),
        train.key,
        warnings,
        shown=[decode_row(tokenizer, row, SHOWN_TOKENS) for row in learned.select(range(min(SHOWN, len(learned))))],
    )


def format_lengths(counts: Counts) -> str:
    """Format the distribution of row lengths in one line: ``≤16: 3, ≤64: 40``."""
    names = [f"≤{end}" for end in LENGTHS] + [f">{LENGTHS[-1]}"]
    return ", ".join(f"{name}: {number}" for name, number in zip(names, counts.lengths, strict=True) if number)


def _split_off(train: token_cache.TokenTable, fraction: float | None, seed: int) -> Split:
    """Split the held-out sequences off those of the training data."""
    chosen = _draw_held_out(len(train.rows), fraction, seed)
    learned, held_out = (train.rows.select(numpy.flatnonzero(part)) for part in (~chosen, chosen))
    return Split(learned, train.row_hashes[~chosen], held_out, train.row_hashes[chosen])


def _count_split(counts: Counts, split: Split) -> None:
    """Count sequences and tokens, copies among the training rows, and held-out rows that are training rows too."""
    counts.sequences, counts.held_out = len(split.learned), len(split.held_out)
    counts.duplicates = len(split.learned_hashes) - len(numpy.unique(split.learned_hashes))
    counts.leaked = int(numpy.isin(split.held_out_hashes, split.learned_hashes).sum())
    counts.tokens, counts.learned_tokens = _count_tokens(split.learned)


def _draw_held_out(number: int, fraction: float | None, seed: int) -> "numpy.ndarray[Any, numpy.dtype[numpy.bool_]]":
    """Draw the held-out sequences by ``seed``: at least one if there are two or more, and never all."""
    chosen = numpy.zeros(number, dtype=numpy.bool_)
    if number > 1:
        number_held_out = (
            round(number * fraction) if fraction else min(round(number * DEFAULT_FRACTION), DEFAULT_HELD_OUT)
        )
        chosen[random.Random(seed).sample(range(number), min(max(number_held_out, 1), number - 1))] = True  # noqa: S311 -- a split, no secret
    return chosen


def _count_tokens(table: datasets.Dataset) -> tuple[int, int]:
    """Return how many tokens there are, and how many of them are learned."""
    total = learned = 0
    for batch in table.with_format("arrow").iter(batch_size=1024):
        for name in batch.column_names:
            if name.endswith("_ids"):
                number = int(pyarrow.compute.sum(pyarrow.compute.list_value_length(batch[name])).as_py() or 0)
                total += number
                learned += number if name not in ("input_ids", "prompt_ids") else 0
            elif name == "labels":
                values = pyarrow.compute.list_flatten(batch[name])
                learned += int(pyarrow.compute.sum(pyarrow.compute.not_equal(values, IGNORED)).as_py() or 0)
    return total, learned


def _to_example(row: TokenizedRow) -> Example:
    sequences = label_sequences(row)
    return Example(*next(sequences[name] for name in ("text", "chosen", "completion") if name in sequences))


def _list_warnings(counts: Counts, layout: Layout, tokenizer: Any, request: token_cache.DatasetRequest) -> list[str]:
    warnings = []
    if counts.truncated or counts.dropped or counts.empty:
        warnings.append(_describe_counts(counts, request.max_length))
    if layout != "plain text" and tokenizer.eos_token_id is None:
        warnings.append("the tokenizer has no end-of-text token: the model does not learn where an answer ends")
    if counts.without_end and layout != "plain text":
        warnings.append(
            f"{counts.without_end} of {counts.rows} rows do not end with the end-of-text token "
            f"{tokenizer.eos_token!r}: the model may not learn where an answer ends"
        )
    warnings += describe_lost(counts)
    if counts.duplicates:
        warnings.append(f"{counts.duplicates} of {counts.sequences} training rows are copies of other rows")
    if counts.leaked:
        warnings.append(
            f"{counts.leaked} of {counts.held_out} held-out rows are also training rows: "
            "the comparison with the base makes the adapter look better than it is"
        )
    if request.source.format == "auto" and request.source.template is None:
        warnings.append(f"spec.dataset.format auto: the dataset is read as {_describe_layout(counts)}")
    return warnings


def _describe_layout(counts: Counts) -> str:
    return rows.describe_layout(counts.layout, counts.columns, counts.unused_columns)


def _describe_counts(counts: Counts, max_length: int) -> str:
    effects = [
        (counts.truncated, f"cut to maxLength {max_length} ({counts.cut_tokens} tokens cut off)"),
        (counts.dropped, "left out because nothing was left to learn from"),
        (counts.empty, "left out because they are empty"),
    ]
    return f"of {counts.rows} rows: " + ", ".join(f"{number} {effect}" for number, effect in effects if number)
