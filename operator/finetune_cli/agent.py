"""Run ``finetune agent``: print what users add to a pod template that the operator may not change."""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.label_selector import format_selector, matches
from finetune_api.validation import problems
from finetune_cli.cluster import Object
from finetune_cli.documents import FileError, check, read_documents
from finetune_cli.errors import CliError
from finetune_engines import ENGINES
from finetune_operator.kube.kinds import POD
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.resources.injection import AgentParameters, build_snippet


def print_agent(file: str, image: str, report_url: str, values: str | None = None) -> None:
    """Print the agent for each selector of the file's AdapterDeployments, as the operator would add it.

    Args:
        file: The AdapterDeployments, and the FineTuneJobs whose Secrets they need; - is standard input.
        image: The operator's image.
        report_url: Address at which the agents reach the operator.
        values: File with the chart's values, of which ``pods`` are settings of agents too; None: the chart's own.

    Raises:
        CliError: A file is not valid, or none of the AdapterDeployments has a selector.
    """
    pods = read_pod_defaults(values) if values is not None else PodDefaults()
    results = [check(document, file) for document in read_documents(file)]
    if lines := [line for result in results for line in result.lines]:
        raise CliError("\n       ".join(lines))
    jobs = [result.value for result in results if result.is_ours and result.value["kind"] == "FineTuneJob"]
    groups: dict[str, list[AdapterDeploymentSpec]] = defaultdict(list)
    for result in results:
        if result.is_ours and result.value["kind"] == "AdapterDeployment":
            spec = AdapterDeploymentSpec.model_validate(result.value["spec"])
            if spec.target.selector is not None:
                groups[format_selector(spec.target.selector)].append(spec)
    if not groups:
        raise CliError(
            f"{file} has no AdapterDeployment with spec.target.selector: into a Deployment or a StatefulSet the "
            "operator puts the agent by itself"
        )
    documents = []
    for selector, specs in groups.items():
        first = specs[0].target
        secrets = {secret for spec in specs for secret in _list_secrets(spec, jobs)}
        parameters = AgentParameters(
            container=first.container or first.engine,
            engine=ENGINES[first.engine],
            secrets=tuple(sorted(secrets)),
            image=image,
            pull_policy="IfNotPresent",
            report_url=report_url,
            pods=pods,
        )
        snippet = build_snippet(WorkloadRef(POD, selector).group, parameters)
        documents.append(f"# pods with {selector}\n{yaml.safe_dump(snippet, sort_keys=False, allow_unicode=True)}")
    sys.stdout.write("---\n".join(documents))


def read_pod_defaults(file: str) -> PodDefaults:
    """Read the settings of every pod from a file with the chart's values; - is standard input.

    Raises:
        CliError: The file cannot be read, or a value is not valid.
    """
    (document, *others) = read_documents(file)
    values: Any = document.value
    if others or not isinstance(values, dict):
        raise FileError(file, 1, "must be one YAML object: the values of the chart, as `helm get values --all` prints")
    try:
        return PodDefaults.model_validate(values.get("pods") or {})
    except ValidationError as error:
        raise CliError(f"{file}: " + "\n       ".join(str(item) for item in problems(error, "pods"))) from error


def _list_secrets(spec: AdapterDeploymentSpec, jobs: Sequence[Object]) -> Iterator[str]:
    """List the Secrets of the engine and of the adapter; warn of a job whose Secret is not known."""
    if spec.target.api_key_secret_ref is not None:
        yield spec.target.api_key_secret_ref.name
    if spec.adapter.secret_ref is not None:
        yield spec.adapter.secret_ref.name
        return
    if spec.adapter.uri is not None:
        return
    sources = [job for job in jobs if _is_source(job, spec)]
    if not sources:
        sys.stderr.write(
            f"warning: AdapterDeployment of {spec.served_name!r}: its FineTuneJob is not in the file, so a Secret of "
            "the job's spec.output.secretRef is missing below: add the job to the file, or set spec.adapter.secretRef\n"
        )
    for job in sources:
        output = FineTuneJobSpec.model_validate(job["spec"]).output
        if output.secret_ref is not None:
            yield output.secret_ref.name


def _is_source(job: Object, spec: AdapterDeploymentSpec) -> bool:
    """Return whether the AdapterDeployment serves the adapter of this FineTuneJob, or may choose it."""
    source = spec.adapter
    if source.selector is not None:
        return matches(source.selector, job["metadata"].get("labels") or {})
    return source.finetune_job_ref is not None and job["metadata"]["name"] == source.finetune_job_ref.name
