"""Generate the chart's Chart.yaml, its values.yaml with comments, and the JSON schema of its values."""

import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from tools.values import ChartValues, Section

MARKER = "Generated from tools/values.py by `make generate`: do not edit."
HEADER = f"# {MARKER}\n"
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
CHART = """\
# Generated from tools/chart.py by `make generate`: do not edit. The version is that of pyproject.toml.
apiVersion: v2
name: finetune-operator
description: Fine-tuning jobs on Kubernetes, from one YAML to a verified PEFT adapter in S3, and to the serving pods.
type: application
version: {version}
appVersion: {version}
kubeVersion: ">=1.31.0-0"
keywords: [fine-tuning, peft, lora, vllm, llm]
"""


def chart_yaml() -> str:
    """Return the chart's metadata, with the project's version."""
    return CHART.format(version=tomllib.loads(PYPROJECT.read_text())["project"]["version"])


def values_yaml() -> str:
    """Return values.yaml: each value with its default, and its description as a comment."""
    return HEADER + "\n" + "\n".join(_lines(ChartValues(), 0)) + "\n"


def _lines(section: BaseModel, depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if depth == 0 and lines:
            lines.append("")
        lines += [f"{indent}# {line}" for line in textwrap.wrap(field.description or "", 110)]
        if isinstance(value, Section):
            lines.append(f"{indent}{field.alias}:")
            lines += _lines(value, depth + 1)
        else:
            text = yaml.safe_dump({field.alias: value}, sort_keys=False).strip()
            lines += [indent + line for line in text.splitlines()]
    return lines


def values_schema() -> str:
    """Return values.schema.json."""
    schema: dict[str, Any] = {"$schema": "http://json-schema.org/draft-07/schema#", "$comment": MARKER}
    schema |= _without_titles(ChartValues.model_json_schema(by_alias=True, ref_template="#/definitions/{model}"))
    schema["definitions"] = schema.pop("$defs")
    return json.dumps(schema, indent=2) + "\n"


def _without_titles(node: Any) -> Any:
    if isinstance(node, dict):
        return {
            key: _without_titles(value) for key, value in node.items() if key != "title" or not isinstance(value, str)
        }
    if isinstance(node, list):
        return [_without_titles(item) for item in node]
    return node
