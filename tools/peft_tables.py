"""``python -m tools.peft_tables``: write finetune_api/peft.json, what PEFT knows by itself and the preflight must know without importing torch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parent.parent / "operator" / "finetune_api" / "peft.json"
BOOKKEEPING = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision", "runtime_config", "task_type",
}  # fmt: skip
"""Options that PEFT or the trainer fills in."""


def table() -> str:
    """The file's content: default target modules by method and model type, and the options of each configuration class."""
    import peft
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import constants

    targets: dict[str, Any] = {}
    for method in ("LORA", "ADALORA", "IA3", "VERA", "LOHA", "LOKR", "OFT", "MISS"):
        targets[method.lower()] = getattr(constants, f"TRANSFORMERS_MODELS_TO_{method}_TARGET_MODULES_MAPPING")
    options = {
        kind.value: sorted({field.name for field in dataclasses.fields(config) if field.init} - BOOKKEEPING)
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    content = {
        "version": peft.__version__,
        "targetModules": targets,
        "feedforwardModules": constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        "options": options,
    }
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
