"""``python -m tools.transformers_tables``: write finetune_api/transformers.json, what the preflight must know of transformers without importing torch."""

import json
from pathlib import Path

TABLE = Path(__file__).parent.parent / "operator" / "finetune_api" / "transformers.json"


def table() -> str:
    """The file's content: the types of the causal language models for which transformers has code."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    content = {"version": transformers.__version__, "causalModels": sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
