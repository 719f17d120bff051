"""Have a Job, or an AnalysisRun of Argo Rollouts, decide: create it, then look at it until it has ended.

Its name follows from the identity of the analysis, so that an operator that was restarted meanwhile finds it.
"""

import asyncio
import logging

from finetune_operator.kube.client import Kube
from finetune_operator.kube.errors import AlreadyExistsError, ForbiddenError, InvalidError, KubeError, NotFoundError
from finetune_operator.kube.kinds import (
    ANALYSIS_RUN,
    ANALYSIS_TEMPLATE,
    CRON_JOB,
    JOB,
    JOB_NAME_LABEL,
    POD,
    Kind,
    Object,
)
from finetune_operator.policies.analysis import AnalysisRequest, Outcome
from finetune_operator.policies.analysis_objects import find_last_message, judge_job, judge_run
from finetune_operator.resources.analysis_objects import (
    UnusableTemplateError,
    build_analysis_run,
    build_job,
    name_object,
)

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 5.0
"""Pause between two looks."""


async def analyse(request: AnalysisRequest, kube: Kube) -> Outcome:
    """Create the object unless it is there, and wait for its end."""
    kind, name, created = _kind_of(request), name_object(request.id), False
    while True:
        try:
            found = await kube.get(kind, request.id.namespace, name)
            if found is not None:
                if (outcome := await _judge(kind, found, kube)) is not None:
                    return outcome
            elif created:
                return Outcome("Inconclusive", f"{kind.name} {name!r} was deleted before it had ended")
            else:
                await _create(request, kube)
                created = True
        except (UnusableTemplateError, ForbiddenError, InvalidError, NotFoundError) as error:
            return Outcome("Inconclusive", f"{kind.name} {name!r} cannot be created: {error}")
        except KubeError as error:
            logger.info("Analysis of %s/%s: %s", request.id.namespace, request.id.name, error)
        await asyncio.sleep(PAUSE_SECONDS)


async def remove(request: AnalysisRequest, kube: Kube) -> None:
    """Delete the object of an analysis that does not count any more; if that fails, it ends by itself."""
    kind, name = _kind_of(request), name_object(request.id)
    try:
        await kube.delete(kind, request.id.namespace, name)
    except KubeError as error:
        logger.warning("%s %s/%s stays: %s", kind.name, request.id.namespace, name, error)


def _kind_of(request: AnalysisRequest) -> Kind:
    return JOB if request.analysis.job is not None else ANALYSIS_RUN


async def _create(request: AnalysisRequest, kube: Kube) -> None:
    """Create the object. Raises ``UnusableTemplateError`` and errors of the API server."""
    job, template_ref, namespace = request.analysis.job, request.analysis.analysis_template_ref, request.id.namespace
    try:
        if job is not None:
            name = job.cron_job_ref.name
            cron_job = await kube.get(CRON_JOB, namespace, name)
            if cron_job is None:
                raise UnusableTemplateError(f"there is no CronJob {name!r} in namespace {namespace!r}")
            await kube.create(JOB, build_job(cron_job, request))
        elif template_ref is not None:
            name = template_ref.name
            template = await kube.get(ANALYSIS_TEMPLATE, namespace, name)
            if template is None:
                text = f"there is no AnalysisTemplate {name!r} in namespace {namespace!r}"
                raise UnusableTemplateError(f"{text}, or Argo Rollouts is not installed")
            await kube.create(ANALYSIS_RUN, build_analysis_run(template, request))
    except AlreadyExistsError:
        return


async def _judge(kind: Kind, found: Object, kube: Kube) -> Outcome | None:
    """Judge the object; None while it runs."""
    if kind is ANALYSIS_RUN:
        return judge_run(found)
    outcome = judge_job(found)
    if outcome is None or outcome.result == "Passed":
        return outcome
    meta = found["metadata"]
    pods, _ = await kube.list(POD, meta["namespace"], f"{JOB_NAME_LABEL}={meta['name']}")
    return judge_job(found, find_last_message(pods))
