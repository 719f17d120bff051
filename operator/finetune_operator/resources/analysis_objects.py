"""Build the Job or AnalysisRun of an analysis from a template of the user's."""

import copy
import hashlib

from finetune_api import GROUP
from finetune_operator.kube.kinds import ANALYSIS_RUN, JOB, Object, adapter_deployment_owner
from finetune_operator.policies.analysis import AnalysisId, AnalysisRequest, Subject, fill
from finetune_operator.resources.names import fit, short

ANALYSIS_LABEL = f"{GROUP}/analysis-of"
"""Label of Jobs and AnalysisRuns: name of the AdapterDeployment, shortened if it is too long."""
KEEP_SECONDS = 24 * 3600
"""How long the object is kept after its end, if its template does not say it."""


class UnusableTemplateError(ValueError):
    """No Job or AnalysisRun can be made of the template."""


def name_object(identity: AnalysisId) -> str:
    """Name the object of an analysis, so that the same analysis never has two."""
    parts = (
        identity.uid,
        str(identity.generation),
        identity.started_at,
        str(identity.step),
        identity.reached_at,
        identity.again,
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
    return fit(identity.name, f"analysis-{identity.step}-{digest}")


def build_job(cron_job: Object, request: AnalysisRequest) -> Object:
    """Build the Job from a CronJob's template; its containers get the canary as environment variables."""
    template = copy.deepcopy(cron_job["spec"]["jobTemplate"])
    spec = {"ttlSecondsAfterFinished": KEEP_SECONDS, **template["spec"]}
    variables = build_environment(request.subject)
    pod = spec["template"]["spec"]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        container["env"] = [*container.get("env", []), *variables]
    metadata = _build_metadata(request, template.get("metadata") or {})
    metadata["annotations"]["cronjob.kubernetes.io/instantiate"] = "manual"
    return {"apiVersion": JOB.api_version, "kind": JOB.name, "metadata": metadata, "spec": spec}


def build_environment(subject: Subject) -> list[Object]:
    """Build the environment variables that tell a container about the canary."""
    values = {
        "FINETUNE_SERVED_NAME": subject.served_name,
        "FINETUNE_DIGEST": subject.digest,
        "FINETUNE_PREVIOUS_DIGEST": subject.previous_digest,
        "FINETUNE_STEP": str(subject.id.step),
        "FINETUNE_PODS": ",".join(subject.pods),
        "FINETUNE_STABLE_PODS": ",".join(subject.stable_pods),
        "FINETUNE_MODEL": subject.model,
        "FINETUNE_STABLE_MODEL": subject.stable_model,
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def build_analysis_run(template: Object, request: AnalysisRequest) -> Object:
    """Build the AnalysisRun from an AnalysisTemplate.

    Raises:
        UnusableTemplateError: the template has templates of its own, or lacks an argument that has a value here.
    """
    spec, name = template["spec"], template["metadata"]["name"]
    if spec.get("templates"):
        raise UnusableTemplateError(
            f"AnalysisTemplate {name!r} names other templates, which the operator does not follow: write its metrics "
            "into one AnalysisTemplate"
        )
    ref = request.analysis.analysis_template_ref
    values = {arg.name: fill(arg.value, request.subject) for arg in (ref.args if ref is not None else ())}
    known = [arg["name"] for arg in spec.get("args", [])]
    if unknown := sorted(values.keys() - set(known)):
        raise UnusableTemplateError(
            f"AnalysisTemplate {name!r} has no argument {unknown[0]!r}; it has: {', '.join(known) or 'none'}"
        )
    args = [
        {"name": arg["name"], "value": values[arg["name"]]} if arg["name"] in values else arg
        for arg in spec.get("args", [])
    ]
    copied = {field: spec[field] for field in ("metrics", "dryRun", "measurementRetention") if field in spec}
    return {
        "apiVersion": ANALYSIS_RUN.api_version,
        "kind": ANALYSIS_RUN.name,
        "metadata": _build_metadata(request, {}),
        "spec": {**copied, "args": args, "ttlStrategy": {"secondsAfterCompletion": KEEP_SECONDS}},
    }


def _build_metadata(request: AnalysisRequest, template: Object) -> Object:
    identity = request.id
    return {
        "name": name_object(identity),
        "namespace": identity.namespace,
        "labels": {**(template.get("labels") or {}), ANALYSIS_LABEL: short(identity.name)},
        "annotations": dict(template.get("annotations") or {}),
        "ownerReferences": [adapter_deployment_owner(identity.name, identity.uid)],
    }
