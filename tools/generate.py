"""``python -m tools.generate [--check]``: write every generated file, or say which of them is not as it would be written."""

import sys
from pathlib import Path

from finetune_api.crd import adapterdeployment_crd, finetunejob_crd, to_yaml
from tools import chart, reference

ROOT = Path(__file__).parent.parent


def generated() -> dict[str, str]:
    """The content of each generated file, by its path in the repository."""
    files: dict[str, str] = {}
    for crd in (finetunejob_crd(), adapterdeployment_crd()):
        name = f"{crd['spec']['names']['plural']}.yaml"
        files[f"crds/{name}"] = to_yaml(crd)
        files[f"charts/finetune-operator/files/crds/{name}"] = to_yaml(crd)
        files[f"docs/reference/{crd['spec']['names']['singular']}.md"] = reference.kind_page(crd)
    files["charts/finetune-operator/Chart.yaml"] = chart.chart_yaml()
    files["charts/finetune-operator/values.yaml"] = chart.values_yaml()
    files["charts/finetune-operator/values.schema.json"] = chart.values_schema()
    files["docs/reference/values.md"] = reference.values_page()
    files["docs/reference/reasons.md"] = reference.reasons_page()
    return files


def stale() -> list[str]:
    """The paths of the generated files that are missing or differ from what would be written."""
    return [
        path for path, text in generated().items() if not (ROOT / path).is_file() or (ROOT / path).read_text() != text
    ]


def main() -> int:
    """Write the files, or with ``--check`` only name the stale ones; 1 if there are any."""
    if "--check" in sys.argv[1:]:
        found = stale()
        for path in found:
            sys.stderr.write(f"{path} is not what its source says: run `make generate` and commit the result\n")
        return 1 if found else 0
    for path, text in generated().items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
