"""Build requests and limits of CPU, memory and GPUs."""

from collections.abc import Mapping

from finetune_api.core_v1.quantity import format_quantity, parse_quantity
from finetune_api.finetunejob import ContainerResources, Resources
from finetune_operator.kube.kinds import Object
from finetune_operator.pod_defaults import PodDefaults

Quantities = Mapping[str, int | str]


def build_trainer_requirements(resources: Resources, defaults: PodDefaults) -> Object:
    """Build requests and limits of a trainer. Both have the GPUs, as Kubernetes requires."""
    per_gpu = defaults.resources.trainer
    for_all_gpus = ContainerResources(
        requests={name: _multiply(value, resources.processes) for name, value in per_gpu.requests.items()},
        limits={name: _multiply(value, resources.processes) for name, value in per_gpu.limits.items()},
    )
    merged = merge_requirements(for_all_gpus, ContainerResources(requests=resources.requests, limits=resources.limits))
    gpus = {resources.gpu_resource_name: str(resources.gpus_per_node)} if resources.gpus_per_node else {}
    return {"requests": {**merged["requests"], **gpus}, "limits": {**merged["limits"], **gpus}}


def build_preflight_requirements(resources: Resources, defaults: PodDefaults) -> Object:
    """Build requests and limits of a preflight or clean-up pod."""
    return merge_requirements(defaults.resources.preflight, resources.preflight or ContainerResources())


def build_merge_requirements(resources: Resources, needed_bytes: int | None, defaults: PodDefaults) -> Object:
    """Build requests and limits of a merge pod. ``needed_bytes`` is the memory that it needs, if that is known."""
    own = resources.merge or ContainerResources()
    requests = {} if needed_bytes is None or "memory" in own.limits else {"memory": str(needed_bytes)}
    requested = ContainerResources(requests={**requests, **own.requests}, limits=own.limits)
    return merge_requirements(defaults.resources.merge, requested)


def merge_requirements(defaults: ContainerResources, requested: ContainerResources) -> Object:
    """Merge the requested amounts with the defaults.

    If a request then exceeds the limit, both get the value that is not a default.
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
