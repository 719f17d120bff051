"""Run ``finetune render``: check a file as the API server and the operator do, and print it with its defaults."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api import API_VERSION
from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import Model
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.validation import problems
from finetune_cli.errors import CliError

SPECS: dict[str, type[Model]] = {"FineTuneJob": FineTuneJobSpec, "AdapterDeployment": AdapterDeploymentSpec}
KNOWN = {"apiVersion", "kind", "metadata", "spec", "status"}


def render(file: str, output: str) -> None:
    """Print each object of the file. Raises CliError with one line per problem, each with the path of its field."""
    documents = read_documents(file)
    lines: list[str] = []
    objects = []
    for number, document in enumerate(documents, 1):
        rendered, wrong = render_object(document)
        where = file if len(documents) == 1 else f"{file}, document {number}"
        lines += [f"{where}: {problem}" for problem in wrong]
        objects.append(rendered)
    if lines:
        raise CliError("\n       ".join(lines))
    if output == "json":
        sys.stdout.write(json.dumps(objects[0] if len(objects) == 1 else objects, indent=2) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=True))


def render_object(document: Any, context: dict[str, Any] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the object with its defaults, or an empty one and its problems.

    Args:
        document: The parsed YAML.
        context: Context for the validators.
    """
    if not isinstance(document, dict):
        return {}, [f"is not a Kubernetes object: found {type(document).__name__}"]
    if document.get("apiVersion") != API_VERSION or document.get("kind") not in SPECS:
        return {}, [
            f"apiVersion, kind: found {document.get('apiVersion')!r}, {document.get('kind')!r}: "
            f"write {API_VERSION} and {' or '.join(SPECS)}"
        ]
    wrong = [f"{key}: unknown field: remove it" for key in document if key not in KNOWN]
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not (metadata.get("name") or metadata.get("generateName")):
        wrong.append("metadata.name: is missing: give the object a name")
    try:
        spec = SPECS[document["kind"]].model_validate(document.get("spec") or {}, context=context)
    except ValidationError as error:
        return {}, wrong + [
            f"spec.{problem}" if problem.field else f"spec: {problem.message}" for problem in problems(error)
        ]
    if wrong:
        return {}, wrong
    return {"apiVersion": API_VERSION, "kind": document["kind"], "metadata": metadata, "spec": spec.to_json()}, []


def read_documents(file: str) -> list[Any]:
    """Read the YAML documents of a file; - is standard input. Raises CliError."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {file}: {error}") from error
    except yaml.YAMLError as error:
        raise CliError(f"{file} is not YAML: {error}") from error
    if not documents:
        raise CliError(f"{file} has no object in it")
    return documents
