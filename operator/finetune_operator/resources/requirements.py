"""Build requests and limits of CPU, memory and GPUs."""

from collections.abc import Mapping

from finetune_api.core_v1.quantity import format_quantity, parse_quantity
from finetune_api.finetunejob import ContainerResources, Resources
from finetune_operator.kube.kinds import Object
from finetune_operator.pod_defaults import PodDefaults

Quantities = Mapping[str, int | str]


def build_trainer_requirements(resources: Resources, defaults: PodDefaults) -> Object:
    """Build those of a trainer; Kubernetes requires a GPU in both, with the same number."""
    each = defaults.resources.trainer
    shared = ContainerResources(
        requests={name: _multiply(value, resources.processes) for name, value in each.requests.items()},
        limits={name: _multiply(value, resources.processes) for name, value in each.limits.items()},
    )
    merged = merge_requirements(shared, ContainerResources(requests=resources.requests, limits=resources.limits))
    gpus = {resources.gpu_resource_name: str(resources.gpus_per_node)} if resources.gpus_per_node else {}
    return {"requests": {**merged["requests"], **gpus}, "limits": {**merged["limits"], **gpus}}


def build_preflight_requirements(resources: Resources, defaults: PodDefaults) -> Object:
    """Build those of a preflight or clean-up pod."""
    return merge_requirements(defaults.resources.preflight, resources.preflight or ContainerResources())


def merge_requirements(defaults: ContainerResources, requested: ContainerResources) -> Object:
    """Merge what is asked for with the defaults.

    Where a request is then above the limit, the one of them that was asked for counts for both.
    """
    requests = {**defaults.requests, **requested.requests}
    limits = {**defaults.limits, **requested.limits}
    for name in requests.keys() & limits.keys():
        if parse_quantity(requests[name]) > parse_quantity(limits[name]):
            if name in requested.limits:
                requests[name] = limits[name]
            else:
                limits[name] = requests[name]
    return {"requests": requests, "limits": limits}


def _multiply(value: int | str, times: int) -> int | str:
    return value if times == 1 else format_quantity(parse_quantity(value) * times)
