"""docs/estimate.md describes everything that the estimate knows and prints."""

from pathlib import Path

from finetune_api.estimate.architecture import known
from finetune_api.estimate.gpus import GPUS
from finetune_api.estimate.report import ChangeEstimate, GpuEstimate, JobEstimate, MemoryEstimate
from tests.estimate.models import MODELS

PAGE = " ".join(Path("docs/estimate.md").read_text().split())
"""The page, with its lines joined."""


def test_every_field_of_the_json_is_documented() -> None:
    for model in (JobEstimate, MemoryEstimate, GpuEstimate, ChangeEstimate):
        for field in model.model_fields.values():
            assert f"`{field.alias}" in PAGE, f"{model.__name__}: {field.alias}"


def test_every_architecture_and_gpu_is_documented_and_each_architecture_compared_with_peft() -> None:
    assert f"`config.json`): {', '.join(known())}." in PAGE
    assert f"GPUs: {', '.join(gpu.name for gpu in GPUS)}, with" in PAGE
    assert {model_type for model_type, _ in MODELS.values()} == set(known())
    assert f"on {len(MODELS)} configurations of {len(known())} architectures" in PAGE
