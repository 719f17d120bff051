"""Write the token sequences of a dataset to disk, and reuse those of an earlier attempt.

Rows are streamed, so that neither all rows nor all tokens are in memory at once.
"""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]

from finetune_api.data_counts import Counts
from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import Objective
from finetune_trainer.data import files, rows
from finetune_trainer.data.sources import LocalData, list_local_files
from finetune_trainer.data.tokens import Encoder, Encoding, TokenizedRow, batched
from finetune_trainer.data.values import Row
from finetune_trainer.runtime.logs import log

CACHE_VERSION = 4
"""Part of the cache's key. Raise it whenever the same rows become other sequences."""
TOKENS_FILE = "tokens.arrow"
HASHES_FILE = "keys.npy"
COUNTS_FILE = "facts.json"
TOKEN_IDS = pyarrow.list_(pyarrow.int32())


@dataclass(frozen=True)
class DatasetRequest:
    """The settings that decide which sequences the rows become."""

    source: DatasetSource
    objective: Objective
    max_length: int
    seed: int
    max_held_out: int
    encoding: Encoding = field(default_factory=Encoding)


@dataclass(frozen=True)
class TokenTable:
    """The sequences of a split, and the hash of each one's row."""

    key: str
    rows: datasets.Dataset
    row_hashes: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]"
    counts: Counts


def load_or_write_table(
    data: LocalData,
    digests: list[tuple[str, str]],
    request: DatasetRequest,
    reader: rows.Reader,
    tokenizer: Any,
    cache: Path,
    max_rows: int | None,
) -> TokenTable:
    """Return the sequences of a split, from the cache if they are there.

    ``digests`` are the name and the digest of each file; ``max_rows`` None means all rows.

    Raises:
        Failure: DATASET_INVALID for bad rows.
    """
    key = _cache_key(digests, request, tokenizer, max_rows)
    directory = cache / key
    if not directory.is_dir():
        partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write_table(data, request, reader, tokenizer, partial, max_rows)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    else:
        log.info("reusing the sequences of %s in %s", data.uri, directory)
    counts = Counts.model_validate_json((directory / COUNTS_FILE).read_bytes())
    table = datasets.Dataset.from_file(str(directory / TOKENS_FILE))
    return TokenTable(key, table, numpy.load(directory / HASHES_FILE), counts)


def _cache_key(digests: list[tuple[str, str]], request: DatasetRequest, tokenizer: Any, max_rows: int | None) -> str:
    """Hash everything that determines the sequences: the rows, the tokenizer, and the request."""
    components = {
        "version": CACHE_VERSION,
        "files": [digest for _, digest in digests],  # their location does not matter
        "source": request.source.model_dump(
            mode="json", include={"format", "columns", "template", "assistant_only_loss"}
        ),
        "objective": request.objective,
        "max_length": request.max_length,
        "most": max_rows,
        "template": tokenizer.chat_template,
        "training_template": request.encoding.training_template,
        "end": [tokenizer.eos_token_id, *sorted(request.encoding.end_tokens)],
        "tokenizer": tokenizer.backend_tokenizer.to_str()
        if tokenizer.is_fast
        else [type(tokenizer).__name__, tokenizer.get_vocab()],
    }
    return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()[:32]


def write_table(
    data: LocalData,
    request: DatasetRequest,
    reader: rows.Reader,
    tokenizer: Any,
    directory: Path,
    max_rows: int | None,
) -> None:
    """Write the sequences, the hashes of their rows, and the counts.

    Raises:
        Failure: DATASET_INVALID for bad rows.
    """
    counts, row_hashes = Counts(), array("q")
    findings = rows.Findings()
    encoding = replace(request.encoding, assistant_only_loss=request.source.assistant_only_loss)
    encoder = Encoder(tokenizer, reader.layout, request.max_length, counts, encoding, findings.refuse)
    plain = reader.layout == "plain text"
    sequences = (
        islice(_tokenize_text(data, encoder), max_rows)
        if plain
        else _tokenize_rows(data, reader, encoder, counts, findings, max_rows, held_out=data.uri != request.source.uri)
    )

    def collect() -> Iterator[TokenizedRow]:
        for row_hash, sequence in sequences:
            row_hashes.append(row_hash)
            yield sequence

    with pyarrow.OSFile(str(directory / TOKENS_FILE), "wb") as sink:
        schema = _schema(reader)
        with pyarrow.ipc.new_stream(sink, schema) as writer:
            for batch in batched(collect(), 256):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
    hashes = numpy.frombuffer(row_hashes, dtype=numpy.int64) if row_hashes else numpy.zeros(0, numpy.int64)
    numpy.save(directory / HASHES_FILE, hashes)
    (directory / COUNTS_FILE).write_text(counts.model_dump_json(), encoding="utf-8")


def _schema(reader: rows.Reader) -> pyarrow.Schema:
    if reader.layout == "preference":
        return pyarrow.schema({"prompt_ids": TOKEN_IDS, "chosen_ids": TOKEN_IDS, "rejected_ids": TOKEN_IDS})
    if reader.objective == "kto":
        return pyarrow.schema({"prompt_ids": TOKEN_IDS, "completion_ids": TOKEN_IDS, "label": pyarrow.bool_()})
    return pyarrow.schema({"input_ids": TOKEN_IDS, "labels": TOKEN_IDS})


def _tokenize_rows(
    data: LocalData,
    reader: rows.Reader,
    encoder: Encoder,
    counts: Counts,
    findings: rows.Findings,
    max_rows: int | None,
    *,
    held_out: bool,
) -> Iterator[tuple[int, TokenizedRow]]:
    file_rows = chain.from_iterable(files.read_rows(file) for file in list_local_files(data))

    def good_rows() -> Iterator[Row]:
        for row in reader.read(file_rows, findings):
            # After a bad row nothing will be trained: the others are counted, and chats tried with the template.
            if not findings.bad or rows.is_chat(row):
                yield row

    for row, sequence in encoder.encode(islice(good_rows(), max_rows)):
        counts.rows, counts.empty = findings.rows, findings.empty
        yield _hash(json.dumps(row, sort_keys=True, default=str)), sequence
    counts.rows, counts.empty = findings.rows, findings.empty
    counts.columns, counts.unused_columns = list(findings.used), list(findings.unused)
    # Held-out rows may lack an optional column; and a part of the rows may, too.
    columns = None if held_out or max_rows is not None else reader.columns
    rows.refuse_bad_rows(findings, reader.layout, data.uri, columns)


def _tokenize_text(data: LocalData, encoder: Encoder) -> Iterator[tuple[int, TokenizedRow]]:
    text = chain.from_iterable(files.read_text(file) for file in list_local_files(data))
    for sequence in encoder.encode_text(text):
        yield _hash(json.dumps(sequence["input_ids"])), sequence


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
