"""Write the token sequences of a dataset to disk, or take them from there if an earlier attempt wrote them."""

import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy
import pyarrow  # type: ignore[import-untyped]
import pyarrow.compute  # type: ignore[import-untyped]

from finetune_api.dataset import Counts, DatasetSource
from finetune_api.finetunejob import Objective
from finetune_trainer.data import files, row_formats
from finetune_trainer.data import rows as rows_module
from finetune_trainer.data.sources import LocalData, list_local_files
from finetune_trainer.data.tokens import Encoder, TokenizedRow, batched
from finetune_trainer.runtime.logs import log

CACHE_VERSION = 1
"""Part of the cache's key: raised when the same rows would become other sequences."""


TOKENS_FILE = "tokens.arrow"


HASHES_FILE = "keys.npy"


COUNTS_FILE = "facts.json"


TOKEN_IDS = pyarrow.list_(pyarrow.int32())


@dataclass(frozen=True)
class DatasetRequest:
    """What is to be made of the rows."""

    source: DatasetSource
    objective: Objective
    max_length: int
    seed: int
    max_held_out: int


@dataclass(frozen=True)
class TokenTable:
    """The sequences of one part of the data, and a hash of the row that each comes from."""

    key: str
    rows: datasets.Dataset
    keys: "numpy.ndarray[Any, numpy.dtype[numpy.int64]]"
    counts: Counts


def load_or_write_table(
    data: LocalData,
    digests: list[tuple[str, str]],
    wanted: DatasetRequest,
    reader: rows_module.Reader,
    tokenizer: Any,
    cache: Path,
    most: int | None,
) -> TokenTable:
    """The sequences of a part, from the cache if they were made before. Raises Failure(DATASET_INVALID) for bad rows."""
    key = _cache_key(digests, wanted, tokenizer, most)
    directory = cache / key
    if not directory.is_dir():
        partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write_table(data, wanted, reader, tokenizer, partial, most)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    else:
        log.info("the sequences of %s were made before: taken from %s", data.uri, directory)
    counts = Counts.model_validate_json((directory / COUNTS_FILE).read_bytes())
    table = datasets.Dataset.from_file(str(directory / TOKENS_FILE))
    return TokenTable(key, table, numpy.load(directory / HASHES_FILE), counts)


def _cache_key(digests: list[tuple[str, str]], wanted: DatasetRequest, tokenizer: Any, most: int | None) -> str:
    """A name for all that decides the sequences: the rows, the tokenizer, and what is to be made of them."""
    decisive = {
        "version": CACHE_VERSION,
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


def write_table(
    data: LocalData,
    wanted: DatasetRequest,
    reader: rows_module.Reader,
    tokenizer: Any,
    directory: Path,
    most: int | None,
) -> None:
    """Write sequences, hashes of their rows, and counts. Raises Failure."""
    counts, keys = Counts(), array("q")
    encoder = Encoder(tokenizer, reader.layout, wanted.max_length, counts)
    plain = reader.layout == "plain text"
    found = (
        islice(_tokenize_text(data, encoder), most) if plain else _tokenize_rows(data, reader, encoder, counts, most)
    )

    def kept() -> Iterator[TokenizedRow]:
        for key, sequence in found:
            keys.append(key)
            yield sequence

    with pyarrow.OSFile(str(directory / TOKENS_FILE), "wb") as sink:
        schema = _schema(reader)
        with pyarrow.ipc.new_stream(sink, schema) as writer:
            for some in batched(kept(), 256):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(some, schema))
    numpy.save(
        directory / HASHES_FILE, numpy.frombuffer(keys, dtype=numpy.int64) if keys else numpy.zeros(0, numpy.int64)
    )
    (directory / COUNTS_FILE).write_text(counts.model_dump_json(), encoding="utf-8")


def _schema(reader: rows_module.Reader) -> pyarrow.Schema:
    if reader.layout == "preference":
        return pyarrow.schema({"prompt_ids": TOKEN_IDS, "chosen_ids": TOKEN_IDS, "rejected_ids": TOKEN_IDS})
    if reader.objective == "kto":
        return pyarrow.schema({"prompt_ids": TOKEN_IDS, "completion_ids": TOKEN_IDS, "label": pyarrow.bool_()})
    return pyarrow.schema({"input_ids": TOKEN_IDS, "labels": TOKEN_IDS})


def _tokenize_rows(
    data: LocalData, reader: rows_module.Reader, encoder: Encoder, counts: Counts, most: int | None
) -> Iterator[tuple[int, TokenizedRow]]:
    findings = rows_module.Findings()
    found = chain.from_iterable(files.read_rows(file) for file in list_local_files(data))

    def good() -> Iterator[row_formats.Row]:
        for row in reader.read(found, findings):
            if not findings.bad:  # rows are only counted from then on: nothing will be trained
                yield row

    for row, sequence in encoder.encode(islice(good(), most)):
        counts.rows, counts.empty = findings.rows, findings.empty
        yield _hash(json.dumps(row, sort_keys=True, default=str)), sequence
    counts.rows, counts.empty = findings.rows, findings.empty
    rows_module.refuse_bad_rows(findings, reader.layout, data.uri)


def _tokenize_text(data: LocalData, encoder: Encoder) -> Iterator[tuple[int, TokenizedRow]]:
    text = chain.from_iterable(files.read_text(file) for file in list_local_files(data))
    for sequence in encoder.blocks(text):
        yield _hash(json.dumps(sequence["input_ids"])), sequence


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
