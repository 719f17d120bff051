"""The dataset as token sequences on disk, training rows and held-out rows apart, with counts of all that was made of the rows.

Rows flow from file to file: neither they nor their tokens are ever held in memory as a whole.
"""

import hashlib
import json
import os
import random
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]

from finetune_api.data_counts import LENGTHS, Counts
from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import Objective
from finetune_api.reasons import Reason
from finetune_artifacts.digests import digest_of_file
from finetune_trainer.data import files
from finetune_trainer.data import rows as rows_module
from finetune_trainer.data.sources import Data, Inputs, local_files
from finetune_trainer.data.tokens import IGNORED, Encoder, Sequence, batched
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.logs import log

DEFAULT_FRACTION, DEFAULT_HELD_OUT = 0.1, 200
VERSION = 1
"""Part of the cache's key: raised when the same rows would become other sequences."""
TOKENS, KEYS, FACTS = "tokens.arrow", "keys.npy", "facts.json"
IDS = pyarrow.list_(pyarrow.int32())


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and for each the label that the loss expects of it (``IGNORED`` for none)."""

    input_ids: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """How many tokens the loss looks at; the first has nothing before it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True)
class DatasetRequest:
    """What is to be made of the rows."""

    source: DatasetSource
    objective: Objective
    max_length: int
    seed: int
    max_held_out: int


@dataclass(frozen=True)
class Examples:
    """All sequences of a run.

    ``train`` is a memory-mapped file with the columns that TRL takes. ``digests`` are those of the files of rows, by
    their names. ``held_out`` are at most ``evaluation.maxRows`` sequences as a language model sees them (of two answers
    the better one), and ``held_out_rows`` the same with the columns of ``train``.
    """

    train: datasets.Dataset
    held_out: list[Example]
    held_out_rows: list[Sequence]
    layout: rows_module.Layout
    counts: Counts
    digests: list[tuple[str, str]]
    tokens: str
    """The key of all that decided the training sequences: rows, tokenizer, chat template, and what was to be made of them."""
    warnings: list[str] = field(default_factory=list)
    general: list[Example] = field(default_factory=list)
    """Those of the general text, where forgetting is measured."""


@dataclass(frozen=True)
class _Table:
    """The sequences of one part of the data, and a hash of the row that each comes from."""

    key: str
    rows: datasets.Dataset
    keys: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]"
    counts: Counts


def prepare(wanted: DatasetRequest, inputs: Inputs, tokenizer: Any, cache: Path) -> Examples:
    """Read, check, tokenise and split the dataset; the sequences go below ``cache``, and are taken from there if they are there. Raises Failure."""
    source = wanted.source
    reader = rows_module.reader(local_files(inputs.dataset), source, wanted.objective, inputs.dataset.uri)
    parts = [part for part in (inputs.dataset, inputs.validation) if part]
    digests = [[(f"{part.uri} {path.name}", digest_of_file(path)) for path in part.files] for part in parts]
    train = _table(inputs.dataset, digests[0], wanted, reader, tokenizer, cache, source.max_samples)
    if not len(train.rows):
        raise Failure(
            Reason.DATASET_INVALID,
            f"{source.uri} has no row that the loss can learn from ({_describe(train.counts, wanted.max_length)})",
            "spec.dataset.uri",
        )
    counts, warnings = train.counts, []
    counts.layout = reader.layout
    if inputs.validation is not None:
        apart = _table(inputs.validation, digests[1], wanted, reader, tokenizer, cache, None)
        learned, held_out, held_out_keys = train.rows, apart.rows, apart.keys
        learned_keys = train.keys
        if apart.counts.truncated or apart.counts.dropped or apart.counts.empty:
            warnings.append(f"held-out data: {_describe(apart.counts, wanted.max_length)}")
    else:
        chosen = _choose(len(train.rows), source.validation.fraction if source.validation else None, wanted.seed)
        learned, held_out = train.rows.select(numpy.flatnonzero(~chosen)), train.rows.select(numpy.flatnonzero(chosen))
        learned_keys, held_out_keys = train.keys[~chosen], train.keys[chosen]
    counts.sequences, counts.held_out = len(learned), len(held_out)
    counts.duplicates = len(learned_keys) - len(numpy.unique(learned_keys))
    counts.leaked = int(numpy.isin(held_out_keys, learned_keys).sum())
    counts.tokens, counts.learned_tokens = _tokens(learned)
    if not len(held_out):
        warnings.append("there is only one row: base and adapter are compared on the row that was trained on")
        held_out = learned.select([0])
    compared = [dict(row) for row in held_out.select(range(min(len(held_out), wanted.max_held_out)))]
    if len(held_out) > len(compared):
        warnings.append(
            f"of {len(held_out)} held-out rows the first {len(compared)} are used: raise spec.evaluation.maxRows to use more, or lower "
            "spec.dataset.validation.fraction to train on more"
        )
    warnings += _warnings(counts, reader.layout, tokenizer, wanted)
    log.info(
        "data: %s, %d rows; %d sequences to train on with %d tokens (%d learned), %d held out",
        reader.layout,
        counts.rows,
        counts.sequences,
        counts.tokens,
        counts.learned_tokens,
        counts.held_out,
    )
    log.info("tokens of a row: %s; the longest has %d", histogram(counts), counts.longest)
    return Examples(
        learned,
        [_as_text(row) for row in compared],
        compared,
        reader.layout,
        counts,
        list(chain.from_iterable(digests)),
        train.key,
        warnings,
    )


def histogram(counts: Counts) -> str:
    """How long the rows are, in one line: ``≤16: 3, ≤64: 40``."""
    names = [f"≤{end}" for end in LENGTHS] + [f">{LENGTHS[-1]}"]
    return ", ".join(f"{name}: {number}" for name, number in zip(names, counts.lengths, strict=True) if number)


def _table(
    data: Data,
    digests: list[tuple[str, str]],
    wanted: DatasetRequest,
    reader: rows_module.Reader,
    tokenizer: Any,
    cache: Path,
    most: int | None,
) -> _Table:
    """The sequences of a part, from the cache if they were made before. Raises Failure(DATASET_INVALID) for bad rows."""
    key = _key(digests, wanted, tokenizer, most)
    directory = cache / key
    if not directory.is_dir():
        partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(data, wanted, reader, tokenizer, partial, most)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    else:
        log.info("the sequences of %s were made before: taken from %s", data.uri, directory)
    counts = Counts.model_validate_json((directory / FACTS).read_bytes())
    table = datasets.Dataset.from_file(str(directory / TOKENS))
    return _Table(key, table, numpy.load(directory / KEYS), counts)


def _key(digests: list[tuple[str, str]], wanted: DatasetRequest, tokenizer: Any, most: int | None) -> str:
    """A name for all that decides the sequences: the rows, the tokenizer, and what is to be made of them."""
    decisive = {
        "version": VERSION,
        "files": [digest for _, digest in digests],  # wherever they lie
        "source": wanted.source.model_dump(mode="json", include={"format", "columns", "template"}),
        "objective": wanted.objective,
        "max_length": wanted.max_length,
        "most": most,
        "template": tokenizer.chat_template,
        "end": tokenizer.eos_token_id,
        "tokenizer": tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else [type(tokenizer).__name__, tokenizer.get_vocab()],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:32]


def _write(
    data: Data, wanted: DatasetRequest, reader: rows_module.Reader, tokenizer: Any, directory: Path, most: int | None
) -> None:
    """Write sequences, hashes of their rows, and counts. Raises Failure."""
    counts, keys = Counts(), array("q")
    encoder = Encoder(tokenizer, reader.layout, wanted.max_length, counts)
    plain = reader.layout == "plain text"
    found = islice(_blocks(data, encoder), most) if plain else _sequences(data, reader, encoder, counts, most)

    def kept() -> Iterator[Sequence]:
        for key, sequence in found:
            keys.append(key)
            yield sequence

    with pyarrow.OSFile(str(directory / TOKENS), "wb") as sink:
        schema = _schema(reader)
        with pyarrow.ipc.new_stream(sink, schema) as writer:
            for some in batched(kept(), 256):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(some, schema))
    numpy.save(directory / KEYS, numpy.frombuffer(keys, dtype=numpy.int64) if keys else numpy.zeros(0, numpy.int64))
    (directory / FACTS).write_text(counts.model_dump_json(), encoding="utf-8")


def _schema(reader: rows_module.Reader) -> pyarrow.Schema:
    if reader.layout == "preference":
        return pyarrow.schema({"prompt_ids": IDS, "chosen_ids": IDS, "rejected_ids": IDS})
    if reader.objective == "kto":
        return pyarrow.schema({"prompt_ids": IDS, "completion_ids": IDS, "label": pyarrow.bool_()})
    return pyarrow.schema({"input_ids": IDS, "labels": IDS})


def _sequences(
    data: Data, reader: rows_module.Reader, encoder: Encoder, counts: Counts, most: int | None
) -> Iterator[tuple[int, Sequence]]:
    findings = rows_module.Findings()
    found = chain.from_iterable(files.items(file) for file in local_files(data))

    def good() -> Iterator[rows_module.Row]:
        for row in reader.read(found, findings):
            if not findings.bad:  # rows are only counted from then on: nothing will be trained
                yield row

    for row, sequence in encoder.encode(islice(good(), most)):
        counts.rows, counts.empty = findings.rows, findings.empty
        yield _hash(json.dumps(row, sort_keys=True, default=str)), sequence
    counts.rows, counts.empty = findings.rows, findings.empty
    rows_module.refuse(findings, reader.layout, data.uri)


def _blocks(data: Data, encoder: Encoder) -> Iterator[tuple[int, Sequence]]:
    text = chain.from_iterable(files.pieces(file) for file in local_files(data))
    for sequence in encoder.blocks(text):
        yield _hash(json.dumps(sequence["input_ids"])), sequence


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _choose(number: int, fraction: float | None, seed: int) -> "numpy.ndarray[Any, numpy.dtype[numpy.bool_]]":
    """Which sequences are held out, drawn by ``seed``; at least one to train on and one held out where there are two."""
    chosen = numpy.zeros(number, dtype=numpy.bool_)
    if number > 1:
        wanted = round(number * fraction) if fraction else min(round(number * DEFAULT_FRACTION), DEFAULT_HELD_OUT)
        chosen[random.Random(seed).sample(range(number), min(max(wanted, 1), number - 1))] = True  # noqa: S311 -- a split, no secret
    return chosen


def _tokens(table: datasets.Dataset) -> tuple[int, int]:
    """How many tokens there are, and how many of them are learned."""
    total = learned = 0
    for some in table.with_format("arrow").iter(batch_size=1024):
        for name in some.column_names:
            if name.endswith("_ids"):
                number = int(pyarrow.compute.sum(pyarrow.compute.list_value_length(some[name])).as_py() or 0)
                total += number
                learned += number if name not in ("input_ids", "prompt_ids") else 0
            elif name == "labels":
                values = pyarrow.compute.list_flatten(some[name])
                learned += int(pyarrow.compute.sum(pyarrow.compute.not_equal(values, IGNORED)).as_py() or 0)
    return total, learned


def _as_text(row: Sequence) -> Example:
    if "input_ids" in row:
        return Example(row["input_ids"], row["labels"])
    answer = row["chosen_ids"] if "chosen_ids" in row else row["completion_ids"]
    return Example(row["prompt_ids"] + answer, [IGNORED] * len(row["prompt_ids"]) + answer)


def _warnings(counts: Counts, layout: rows_module.Layout, tokenizer: Any, wanted: DatasetRequest) -> list[str]:
    warnings = []
    if counts.truncated or counts.dropped or counts.empty or counts.whole_conversation:
        warnings.append(_describe(counts, wanted.max_length))
    if layout != "plain text" and tokenizer.eos_token_id is None:
        warnings.append("the tokenizer has no end-of-text token: the model does not learn where an answer ends")
    if counts.without_end and layout != "plain text":
        warnings.append(
            f"{counts.without_end} of {counts.rows} rows do not end with the end-of-text token {tokenizer.eos_token!r}: the model may not learn where an "
            "answer ends"
        )
    if counts.duplicates:
        warnings.append(f"{counts.duplicates} of {counts.sequences} training rows are copies of another one")
    if counts.leaked:
        warnings.append(
            f"{counts.leaked} of {counts.held_out} held-out rows are training rows too: the comparison with the base flatters the adapter"
        )
    if wanted.source.format == "auto" and wanted.source.template is None:
        warnings.append(f"spec.dataset.format auto: the dataset is taken as {layout}")
    return warnings


def _describe(counts: Counts, max_length: int) -> str:
    parts = [
        (counts.truncated, f"cut to maxLength {max_length} ({counts.cut_tokens} tokens cut off)"),
        (counts.dropped, "left out because nothing was left to learn from"),
        (counts.empty, "left out because they are empty"),
        (counts.whole_conversation, "learned whole because the chat template does not tell the turns apart"),
    ]
    return f"of {counts.rows} rows: " + ", ".join(f"{number} {what}" for number, what in parts if number)
