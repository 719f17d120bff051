"""Check AdapterDeployments against the workloads that are to serve them, before either is applied."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus
from finetune_api.label_selector import format_selector, matches
from finetune_api.lenient import read_known, read_spec
from finetune_api.messages import Problem
from finetune_cli.documents import CheckedObject, read_documents
from finetune_cli.errors import CliError
from finetune_engines import ENGINES
from finetune_engines.arguments import read_engine_args
from finetune_engines.fit import Adapter, find_misfits, find_warnings
from finetune_engines.prediction import predict_adapter

Object = dict[str, Any]
KIND = "AdapterDeployment"
WORKLOADS = {
    "Deployment": ("/apis/apps/v1", "deployments"),
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "Pod": ("/api/v1", "pods"),
}
"""Kinds whose containers may serve, with the path of their API and their plural. Selectors choose Pods."""


@dataclass(frozen=True)
class Target:
    """The workloads that are to serve, by kind and name, and the cluster's FineTuneJobs by name."""

    workloads: dict[tuple[str, str], Object]
    jobs: dict[str, Object]


def read_target(against: str, context: str | None, namespace: str | None) -> Target:
    """Read the workloads of a file, or one of the cluster by its name. Raises CliError.

    Args:
        against: The file, or the name: ``web`` is a Deployment, ``statefulset/web`` a StatefulSet, ``pod/web-0`` a Pod.
        context: Context of the kubeconfig; None: its current one.
        namespace: Namespace of the workload; None: that of the context.
    """
    if against == "-" or Path(against).is_file():
        workloads = [document.value for document in read_documents(against) if _is_workload(document.value)]
        if not workloads:
            raise CliError(
                f"{against} has no Deployment, StatefulSet or Pod: --against takes a file that has one, or its name "
                "in the cluster"
            )
        return Target({(item["kind"], item["metadata"]["name"]): item for item in workloads}, {})
    return _read_from_cluster(against, context, namespace)


def _read_from_cluster(against: str, context: str | None, namespace: str | None) -> Target:
    from finetune_cli.cluster import connect

    prefix, _, name = against.rpartition("/")
    kind = next((kind for kind in WORKLOADS if kind.lower() == (prefix or "deployment").lower()), None)
    if kind is None:
        raise CliError(
            f"--against {against}: there is no such file; in the cluster write NAME, statefulset/NAME or pod/NAME"
        )
    cluster = connect(context, namespace)
    api, plural = WORKLOADS[kind]
    path = f"{api}/namespaces/{cluster.namespace}/{plural}/{name}"
    jobs = []
    with contextlib.suppress(CliError):  # without the CRDs, or the right to list them, the files must have the jobs
        jobs = cluster.objects("FineTuneJob", cluster.namespace)
    workloads = {(kind, name): {**cluster.call("GET", path), "kind": kind}}
    return Target(workloads, {job["metadata"]["name"]: job for job in jobs})


def _is_workload(value: Any) -> bool:
    if not isinstance(value, dict) or value.get("kind") not in WORKLOADS:
        return False
    try:
        return bool(value["metadata"]["name"]) and isinstance(_list_containers(value), list)
    except (KeyError, TypeError):
        return False


def _list_containers(workload: Object) -> list[Object]:
    pod = workload if workload["kind"] == "Pod" else workload["spec"]["template"]
    containers: list[Object] = pod["spec"]["containers"]
    return containers


def check_against(results: Sequence[CheckedObject], target: Target) -> list[CheckedObject]:
    """Add problems and warnings of its target to each valid AdapterDeployment.

    Args:
        results: The objects of the files, checked. Their FineTuneJobs show what the adapters will be.
        target: The workloads that are to serve them.

    Raises:
        CliError: No object is an AdapterDeployment.
    """
    if not any(_is_valid(result, KIND) for result in results):
        raise CliError(f"--against checks {KIND}s: the files have none that is valid")
    jobs = {
        **target.jobs,
        **{result.value["metadata"]["name"]: result.value for result in results if _is_valid(result, "FineTuneJob")},
    }
    specs = [AdapterDeploymentSpec.model_validate(item.value["spec"]) for item in results if _is_valid(item, KIND)]
    adapters = Counter(_find_workload(spec)[1:] for spec in specs)
    return [_check(result, target, jobs, adapters) if _is_valid(result, KIND) else result for result in results]


def _is_valid(result: CheckedObject, kind: str) -> bool:
    return result.is_ours and not result.problems and result.value["kind"] == kind


def _check(
    result: CheckedObject, target: Target, jobs: dict[str, Object], adapters: Counter[tuple[str, str]]
) -> CheckedObject:
    spec = AdapterDeploymentSpec.model_validate(result.value["spec"])
    field, kind, name = _find_workload(spec)
    chosen = [workload for workload in target.workloads.values() if _is_chosen(workload, spec)]
    if not chosen:
        wanted = f"Pod with {name}" if kind == "Pod" else f"{kind} {name!r}"
        given = ", ".join(f"{kind} {name}" for kind, name in target.workloads)
        return _refuse(result, field, f"--against gives no {wanted}, only {given}")
    engine, container_name = ENGINES[spec.target.engine], spec.target.container or spec.target.engine
    adapter, unknown = _find_adapter(spec, jobs)
    problems = [(result.line, problem) for problem in _find_missing_merge(spec, jobs)]
    warnings = dict.fromkeys(unknown)
    for workload in chosen:
        title, containers = f"{workload['kind']} {workload['metadata']['name']!r}", _list_containers(workload)
        container = next((item for item in containers if item.get("name") == container_name), None)
        if container is None:
            names = ", ".join(str(item.get("name")) for item in containers)
            text = f"{title} has no container {container_name!r}; it has {names}"
            return _refuse(result, "spec.target.container", text)
        arguments = read_engine_args(container, engine)
        problems += [
            (result.line, Problem(reason=misfit.reason, field="spec.target", message=misfit.message))
            for misfit in find_misfits(
                result.value["metadata"]["name"],
                adapter,
                arguments,
                engine,
                f"container {container_name!r} of {title}",
            )
        ]
        warnings |= dict.fromkeys(find_warnings(adapter, arguments, engine, adapters[kind, name]))
    return replace(result, problems=problems, warnings=list(warnings))


def _find_workload(spec: AdapterDeploymentSpec) -> tuple[str, str, str]:
    """Find which field of the spec names the workload, with its kind and its name or selector."""
    if spec.target.selector is not None:
        return "spec.target.selector", "Pod", format_selector(spec.target.selector)
    if spec.target.stateful_set_ref is not None:
        return "spec.target.statefulSetRef", "StatefulSet", spec.target.stateful_set_ref.name
    reference = spec.target.deployment_ref
    return "spec.target.deploymentRef", "Deployment", reference.name if reference is not None else ""


def _is_chosen(workload: Object, spec: AdapterDeploymentSpec) -> bool:
    """Return whether the target of the spec is this workload, or chooses this pod."""
    if spec.target.selector is not None:
        return workload["kind"] == "Pod" and matches(spec.target.selector, workload["metadata"].get("labels") or {})
    return _find_workload(spec)[1:] == (workload["kind"], workload["metadata"]["name"])


def _refuse(result: CheckedObject, field: str, message: str) -> CheckedObject:
    return replace(result, problems=[(result.line, Problem(field=field, message=message))])


def _find_missing_merge(spec: AdapterDeploymentSpec, jobs: dict[str, Object]) -> list[Problem]:
    """Find out whether the FineTuneJob, if it is known, makes the merged model that the engine serves."""
    reference = spec.adapter.finetune_job_ref
    job = jobs.get(reference.name) if reference is not None else None
    if job is None or not ENGINES[spec.target.engine].serves_merged or job["spec"]["output"].get("mergedModel"):
        return []
    text = f"engine merged serves a merged model, and FineTuneJob {job['metadata']['name']!r} makes none: "
    return [Problem(field="spec.target.engine", message=f"{text}set its spec.output.mergedModel: true")]


def _find_adapter(spec: AdapterDeploymentSpec, jobs: dict[str, Object]) -> tuple[Adapter | None, list[str]]:
    """Return the adapter, by its job's status or spec; if it is unknown, return None and warnings."""
    reference = spec.adapter.finetune_job_ref
    if reference is None:
        return None, ["the adapter is not named by a FineTuneJob, so only the engine's arguments were checked"]
    job = jobs.get(reference.name)
    if job is None:
        return None, [
            f"FineTuneJob {reference.name!r} is not among the files, so only the engine's arguments were checked"
        ]
    status, _ = read_known(FineTuneJobStatus, job.get("status") or {})
    if status.adapter is not None:
        return status.adapter, []
    try:
        job_spec, _ = read_spec(FineTuneJobSpec, job["spec"])
    except ValidationError:
        return None, [f"FineTuneJob {reference.name!r} is not valid, so only the engine's arguments were checked"]
    return predict_adapter(job_spec), []
