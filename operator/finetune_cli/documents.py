"""Read the objects of a file, and check each as the API server and the operator do."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.messages import Problem
from finetune_api.offline import is_ours, validate
from finetune_cli.errors import CliError
from finetune_cli.yaml_reader import Document, NotYamlError, read_yaml

LISTS = ("List", "FineTuneJobList", "AdapterDeploymentList")
ITEM = re.compile(r"items\[(\d+)\]")


class FileError(CliError):
    """A file has no object that can be read."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        """Keep the line, from 1, and the reason."""
        super().__init__(f"{file}:{line}: {reason}")
        self.line = line
        self.reason = reason


@dataclass(frozen=True)
class Checked:
    """An object of a file."""

    file: str
    line: int
    value: Any
    """The object, with its defaults if it is one of ours."""
    is_ours: bool
    problems: list[tuple[int, Problem]]
    """Each with its line."""

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
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        documents = [item for document in read_yaml(content) for item in _items(document)]
    except OSError as error:
        raise FileError(file, 1, f"cannot be read: {error.strerror}") from error
    except NotYamlError as error:
        raise FileError(file, error.line, str(error)) from error
    if not documents:
        raise FileError(file, 1, "has no object in it")
    return documents


def check(document: Document, file: str, *, workstation: bool = False) -> Checked:
    """Check one object; one of another kind has no problem but those of its YAML."""
    ours = is_ours(document.value)
    value, wrong = validate(document.value, workstation=workstation) if ours else (document.value, [])
    found = [Problem(field=path, message=message) for path, message in document.problems]
    broken = {problem.field for problem in found}
    found += [_with_note(problem, document) for problem in wrong if problem.field not in broken]
    lines = sorted(((document.line_of(problem.field), problem) for problem in found), key=lambda item: item[0])
    return Checked(file, document.line, value, ours, lines)


def _with_note(problem: Problem, document: Document) -> Problem:
    """Show the value as it is written, where YAML reads it as something else."""
    text = document.written.get(problem.field)
    if text is None or f'"{text}"' in problem.message or repr(text) in problem.message:
        return problem
    message = re.sub(r'put it into quotes: ".*"', f'put it into quotes: "{text}"', problem.message)
    found = re.search(r"found (?:the number )?([^:,)]+)", message)
    if found is None or found[1] == text:
        return problem.model_copy(update={"message": message})
    return problem.model_copy(update={"message": f"{message} (YAML reads {text} as {found[1]})"})


def _items(document: Document) -> Iterator[Document]:
    """Yield the document, or the objects of a List."""
    value = document.value
    if not isinstance(value, dict) or value.get("kind") not in LISTS or not isinstance(value.get("items"), list):
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
