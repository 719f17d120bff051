"""Run ``finetune render``: check a file as the operator does, and print it with its defaults."""

import json
import sys

import yaml

from finetune_cli.documents import check, read_documents
from finetune_cli.errors import CliError


def render(file: str, output: str) -> None:
    """Print each object of the file. Raises CliError with one line per problem, each with the path of its field."""
    results = [check(document, file) for document in read_documents(file)]
    if lines := [line for result in results for line in result.lines]:
        raise CliError("\n       ".join(lines))
    objects = [result.value for result in results]
    if output == "json":
        sys.stdout.write(json.dumps(objects[0] if len(objects) == 1 else objects, indent=2) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True))
