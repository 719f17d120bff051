"""Run ``finetune validate``: check files as the API server and the operator do, without a cluster."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.messages import Problem
from finetune_cli.against import Target, check_against
from finetune_cli.documents import CheckedObject, FileError, check, read_documents

SUFFIXES = (".yaml", ".yml", ".json")


def validate(files: list[str], recursive: bool, output: str, target: Target | None = None) -> bool:
    """Print the problems of each object of the files; return whether all are valid. Raises CliError.

    ``target`` has the workloads that are to serve the adapters; None: that is not checked.
    """
    results = [result for file in files for result in _check_path(file, recursive)]
    if target is not None:
        results = check_against(results, target)
    if output == "json":
        valid = not any(result.problems for result in results)
        sys.stdout.write(json.dumps({"valid": valid, "objects": [_to_json(item) for item in results]}, indent=2) + "\n")
    else:
        for result in results:
            warnings = [f"{result.file}:{result.line}: warning: {text}" for text in result.warnings]
            sys.stdout.write("".join(f"{line}\n" for line in [*(result.lines or [_describe(result)]), *warnings]))
    return not any(result.problems for result in results)


def _check_path(file: str, recursive: bool) -> Iterator[CheckedObject]:
    """Yield the objects of a file, or of the files of a directory that kubectl would read."""
    directory = Path(file)
    if file == "-" or not directory.is_dir():
        yield from _check_file(file)
        return
    try:
        entries = list(directory.rglob("*") if recursive else directory.iterdir())
    except OSError as error:
        yield _unreadable(FileError(file, 1, f"cannot be read: {error.strerror}"), file)
        return
    paths = sorted(str(path) for path in entries if path.suffix in SUFFIXES and path.is_file())
    if not paths:
        yield _unreadable(FileError(file, 1, f"has no file that ends with {', '.join(SUFFIXES)}"), file)
    for path in paths:
        yield from _check_file(path)


def _check_file(file: str) -> list[CheckedObject]:
    try:
        return [check(document, file) for document in read_documents(file)]
    except FileError as error:
        return [_unreadable(error, file)]


def _unreadable(error: FileError, file: str) -> CheckedObject:
    """Return the result for a file, or a directory, that has no object that can be checked."""
    problem = Problem(field="", message=error.reason)
    return CheckedObject(file, error.line, None, True, [(error.line, problem)])


def _name(value: Any) -> tuple[str, str]:
    """Return kind and name of an object; empty where it has none."""
    if not isinstance(value, dict):
        return "", ""
    metadata = value.get("metadata")
    names = metadata if isinstance(metadata, dict) else {}
    return str(value.get("kind") or ""), str(names.get("name") or names.get("generateName") or "")


def _describe(result: CheckedObject) -> str:
    kind, name = _name(result.value)
    return f"{result.file}:{result.line}: {kind} {name}: {'valid' if result.is_ours else 'not checked'}"


def _to_json(result: CheckedObject) -> dict[str, Any]:
    kind, name = _name(result.value)
    return {
        "file": result.file,
        "line": result.line,
        "kind": kind,
        "name": name,
        "checked": result.is_ours,
        "problems": [
            {"line": line, "field": problem.field, "message": problem.message} for line, problem in result.problems
        ],
        "warnings": result.warnings,
    }
