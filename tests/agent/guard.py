"""The middleware of ``examples/vllm-guard.yaml``, as the kubelet mounts it."""

from pathlib import Path

import yaml

MIDDLEWARE = "finetune_guard.Guard"
EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm-guard.yaml"


def write_guard(directory: Path) -> Path:
    """Write the ConfigMap's files into a directory."""
    directory.mkdir()
    for name, text in yaml.safe_load(EXAMPLE.read_text())["data"].items():
        (directory / name).write_text(text)
    return directory
