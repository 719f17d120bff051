"""Rows as files that are read as the preflight and the training read them."""

import io
import json
from typing import Any

import pytest

from finetune_api.dataset import DatasetSource
from finetune_api.finetunejob import Objective
from finetune_trainer.data import rows
from finetune_trainer.data.files import read_rows
from finetune_trainer.data.sources import DataFile

Row = dict[str, Any]


def file(content: bytes, name: str = "rows") -> DataFile:
    """Write a file of the tests' own."""
    return DataFile(name, lambda: io.BytesIO(content), lambda _: pytest.fail("nothing is to be fetched"))


USER, ANSWER = {"role": "user", "content": "What follows 1?"}, {"role": "assistant", "content": "2."}
WRONG_ANSWER = {"role": "assistant", "content": "7."}


def read(stored_rows: list[Row], objective: Objective = "sft", **source: Any) -> tuple[list[Row], rows.Findings, str]:
    """Read a jsonl file; return its good rows, the findings, and the format that was recognised."""
    content = "".join(json.dumps(row) + "\n" for row in stored_rows).encode()
    spec = DatasetSource.model_validate({"uri": "s3://data/rows.jsonl"} | source)
    data_file = file(content, "rows.jsonl")
    reader, findings = rows.make_reader([data_file], spec, objective, spec.uri), rows.Findings()
    return list(reader.read(read_rows(data_file), findings)), findings, reader.layout
