"""The pods that the operator makes of a spec."""

from collections.abc import Sequence
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_operator.resources.jobs import ResolvedModel, build_preflight_job, build_trainer_job
from finetune_operator.settings import Settings
from tests.operator.fake_cluster import SETTINGS, finetune_job
from tools.testing.operator_messages import SPEC

Object = dict[str, Any]


def build_pods(settings: Settings = SETTINGS, avoided: Sequence[str] = (), **spec: Any) -> tuple[Object, Object]:
    """Return the specs of the pods of preflight and trainer."""
    resource = finetune_job({**SPEC, **spec})
    job = FineTuneJob.of(resource)
    preflight = build_preflight_job(resource, job, 1, settings)
    trainer = build_trainer_job(resource, job, 1, ResolvedModel(), settings, [], avoided)
    return preflight["spec"]["template"]["spec"], trainer["spec"]["template"]["spec"]
