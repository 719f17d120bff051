"""Explain why the API server refuses a Job, with the fields of the FineTuneJob that cause it. Pure."""

import re

from finetune_operator.kube.errors import InvalidError

PREFIXES = (
    ("spec.template.spec.containers[0].resources", "spec.resources"),
    ("spec.template.spec.containers[0].securityContext", "spec.podTemplate.containerSecurityContext"),
    ("spec.template.spec.containers[0]", "spec.podTemplate"),
    ("spec.template.spec", "spec.podTemplate"),
    ("spec.template", "spec.podTemplate"),
)
"""Fields of a Job, and the fields of a FineTuneJob that they come from; the first that fits counts."""
EXTENDED_LIST = re.compile(r"^(spec\.podTemplate\.(?:env|volumes|volumeMounts))\[\d+\]")
"""Lists to which the operator adds its own items in front, so that an item has another index in the spec."""


def explain_refused_job(error: InvalidError) -> str:
    """Explain the refusal: each wrong field with the API server's message, and what to do."""
    causes = [f"{find_field(cause['field'])}: {cause.get('message', '')}" for cause in error.causes if "field" in cause]
    return f"{'; '.join(causes) or f'spec: {error.message}'}. Correct it in a new FineTuneJob"


def find_field(path: str) -> str:
    """Return the field of the FineTuneJob from which this field of its Job comes."""
    for prefix, spec_path in PREFIXES:
        if path.startswith(prefix):
            path = EXTENDED_LIST.sub(r"\1", f"{spec_path}{path[len(prefix) :]}").replace("metadata.", "")
            return path.replace("spec.podTemplate.metadata", "spec.podTemplate")
    return path
