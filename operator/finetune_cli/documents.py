"""Read the objects of a file, and check each as the API server and the operator do."""

import errno
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.messages import Problem
from finetune_api.offline import is_ours, validate
from finetune_api.remedies import show
from finetune_cli.errors import CliError
from finetune_cli.yaml_reader import Document, NotYamlError, read_yaml

LISTS = ("List", "FineTuneJobList", "AdapterDeploymentList")
MAX_NOTE = 80
"""Characters of a number that is shown as it is written."""
ITEM = re.compile(r"items\[(\d+)\]")


class FileError(CliError):
    """A file has no object that can be read."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        """Keep the line, from 1, and the reason."""
        super().__init__(f"{file}:{line}: {reason}")
        self.line = line
        self.reason = reason


@dataclass(frozen=True)
class CheckedObject:
    """An object of a file, with its problems."""

    file: str
    line: int
    value: Any
    """The object, with its defaults if it is one of ours."""
    is_ours: bool
    problems: list[tuple[int, Problem]]
    """Each problem with its line, from 1."""
    warnings: list[str] = field(default_factory=list)
    """Warnings for the user, which do not make the object invalid."""

    @property
    def lines(self) -> list[str]:
        """Return a line of text for each problem: file, line, field, and what is wrong."""
        return [
            f"{self.file}:{line}: {problem}" if problem.field else f"{self.file}:{line}: {problem.message}"
            for line, problem in self.problems
        ]


def read_documents(file: str) -> list[Document]:
    """Read the objects of a file; - is standard input. Raises FileError."""
    try:
        content = _read_standard_input() if file == "-" else Path(file).read_bytes()
        documents = [
            item for document in read_yaml(content, json_only=file.endswith(".json")) for item in _items(document)
        ]
    except OSError as error:
        raise FileError(file, 1, f"cannot be read: {error.strerror}") from error
    except NotYamlError as error:
        raise FileError(file, error.line, str(error)) from error
    if not documents:
        raise FileError(file, 1, "has no object in it")
    return documents


def _read_standard_input() -> bytes:
    if sys.stdin is None:  # closed by the caller, as with <&-
        raise OSError(errno.EBADF, "standard input is closed")
    return sys.stdin.buffer.read()


def check(document: Document, file: str, *, workstation: bool = False) -> CheckedObject:
    """Check one object. An object of another kind can only have problems of its YAML.

    Args:
        document: The object.
        file: Name of its file, for messages.
        workstation: Whether model and data may be ``file://``.
    """
    ours = is_ours(document.value)
    value, invalid = validate(document.value, workstation=workstation) if ours else (document.value, [])
    problems = [Problem(field=path, message=message) for path, message in document.problems]
    fields = {problem.field for problem in problems}
    problems += [_with_note(problem, document) for problem in invalid if problem.field not in fields]
    lines = sorted(((document.line_of(problem.field), problem) for problem in problems), key=lambda item: item[0])
    return CheckedObject(file, document.line, value, ours, lines)


def _with_note(problem: Problem, document: Document) -> Problem:
    """Add the value as it is written in the file, if YAML reads it as something else."""
    text = document.written.get(problem.field)
    if text is None or len(text) > MAX_NOTE or f'"{text}"' in problem.message or repr(text) in problem.message:
        return problem
    message = re.sub(r'put it into quotes: ".*"', f'put it into quotes: "{text}"', problem.message)
    match = re.search(r"found (?:the number )?([^:,)]+)", message)
    if match is None or match[1] == text:
        return problem.model_copy(update={"message": message})
    return problem.model_copy(update={"message": f"{message} (YAML reads {text} as {match[1]})"})


def _items(document: Document) -> Iterator[Document]:
    """Yield the document, or the objects of a List."""
    value = document.value
    if not isinstance(value, dict) or str(value.get("kind")) not in LISTS or value.get("items") is None:
        yield document
        return
    if not isinstance(value["items"], list):
        document.problems.append(("items", f"must be a list, found {show(value['items'])}: begin each item with -"))
        yield document
        return
    items = [
        Document(document.lines.get(f"items[{index}]", document.line), item)
        for index, item in enumerate(value["items"])
    ]
    for path, line in document.lines.items():
        for item, inner in _within(items, path):
            item.lines[inner] = line
    for path, text in document.written.items():
        for item, inner in _within(items, path):
            item.written[inner] = text
    for path, text in document.problems:
        for item, inner in _within(items, path):
            item.problems.append((inner, text))
    yield from items


def _within(items: list[Document], path: str) -> Iterator[tuple[Document, str]]:
    """Yield the item of a List to which a path leads, if one does, and the path within it."""
    match = ITEM.match(path)
    if match and int(match[1]) < len(items):
        yield items[int(match[1])], path.removeprefix(f"{match[0]}.")
