"""The names of GPUs as people and drivers write them."""

import pytest

from finetune_api.estimate.gpus import GPUS, Gpu, gpu_named

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: str(gpu.name))
def test_a_gpu_is_found_by_the_name_in_the_table(gpu: Gpu) -> None:
    assert gpu_named(gpu.name) == gpu
    assert gpu_named(gpu.name.lower().replace(" ", "-")) == gpu


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("A100", "A100 40GB"),
        ("a100-80g", "A100 80GB"),
        ("A100 80 GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA-A100-PCIE-40GB", "A100 40GB"),
        ("A10G", "A10G"),
        ("NVIDIA A10G 24GB", "A10G"),
        ("a10", "A10"),
        ("Tesla T4", "T4"),
        ("t4 16gb", "T4"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("v100", "V100 16GB"),
        ("V100 32Gi", "V100 32GB"),
        ("l40s", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("H100 NVL", "H100"),
        ("H100-PCIe", "H100"),
        ("h200_141gb", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx3090", "RTX 3090"),
        ("NVIDIA RTX A6000", "RTX A6000"),
    ],
)
def test_a_gpu_is_found_by_the_name_that_people_and_drivers_write(spelling: str, name: str) -> None:
    assert gpu_named(spelling).name == name


@pytest.mark.parametrize("spelling", ["H1000", "A100 20GB", "", "4090 Ti", "A100A100", "MI300X", "T4 80GB"])
def test_another_name_is_refused_with_the_names_of_the_table(spelling: str) -> None:
    with pytest.raises(ValueError, match=r"it has: T4, V100 16GB, .*B200$"):
        gpu_named(spelling)
