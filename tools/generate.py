"""Write every generated file, or with ``--check`` name those that are not up to date."""

import json
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from finetune_api.crd import adapterdeployment_crd, finetunejob_crd, to_yaml
from finetune_api.json_schema import editor_schema
from tools import chart, peft_tables, reference, transformers_tables

ROOT = Path(__file__).parent.parent


def generate() -> dict[str, str]:
    """Return the content of each generated file that needs no torch, by its path in the repository."""
    files: dict[str, str] = {}
    for crd in (finetunejob_crd(), adapterdeployment_crd()):
        name = f"{crd['spec']['names']['plural']}.yaml"
        files[f"crds/{name}"] = to_yaml(crd)
        files[f"charts/finetune-operator/files/crds/{name}"] = to_yaml(crd)
        files[f"docs/reference/{crd['spec']['names']['singular']}.md"] = reference.kind_page(crd)
    files["docs/reference/finetune.schema.json"] = editor_schema()
    files["charts/finetune-operator/Chart.yaml"] = chart.chart_yaml()
    files["charts/finetune-operator/values.yaml"] = chart.values_yaml()
    files["charts/finetune-operator/values.schema.json"] = chart.values_schema()
    files["docs/reference/values.md"] = reference.values_page()
    files["docs/reference/reasons.md"] = reference.reasons_page()
    return files


TABLES = {
    "operator/finetune_api/peft.json": ("peft", peft_tables.table),
    "operator/finetune_api/transformers.json": ("transformers", transformers_tables.table),
}
"""Tables of what a library knows, by path: the library, and the function that makes the content (it imports torch)."""


def find_old_tables() -> list[str]:
    """Return the tables of another version than the installed one; a test compares their whole content."""
    return [
        path
        for path, (library, _) in TABLES.items()
        if find_spec(library) and json.loads((ROOT / path).read_text())["version"] != version(library)
    ]


def find_stale(files: dict[str, str]) -> list[str]:
    """Return the paths of the files that are missing or differ from their generated content."""
    return [path for path, text in files.items() if not (ROOT / path).is_file() or (ROOT / path).read_text() != text]


def main() -> int:
    """Write the files, or with ``--check`` only name the stale ones; return 1 if there are any."""
    files = generate()
    if "--check" in sys.argv[1:]:
        stale = [*find_stale(files), *find_old_tables()]
        for path in stale:
            sys.stderr.write(f"{path} is not up to date: run `make generate` and commit the result\n")
        return 1 if stale else 0
    files |= {path: TABLES[path][1]() for path in find_old_tables()}
    for path, text in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
