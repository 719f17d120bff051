"""A job with a model cache: what its pods get, what its status says, and that the API server takes both."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.finetunejob import CachedModel, FineTuneJob
from finetune_operator.reconcile.finetunejob.plan import make_plan
from finetune_operator.resources.injected import covers
from finetune_operator.resources.jobs import ResolvedModel, build_preflight_job, build_trainer_job
from tests.operator.fake_cluster import NOW, SETTINGS, FakeCluster, terminated
from tools.testing.kubernetes_api import Api
from tools.testing.operator_messages import DIGEST, PREFLIGHT_PASSED, SPEC

MODEL = {"uri": "hf://acme/tiny"}
CLAIM = {**MODEL, "cache": {"persistentVolumeClaim": {"claimName": "models", "path": "hub/all"}}}
HOST_PATH = {**MODEL, "cache": {"hostPath": {"path": "/mnt/models"}}}
CACHED = {"directory": "hf-acme-tiny-0123", "digest": DIGEST, "sizeBytes": 140_000_000_000, "downloadedBytes": 0}


@pytest.mark.parametrize(
    ("downloaded", "ending"),
    [
        (0, "The model was in the cache already (140 GB)."),
        (2_000_000_000, "The model is in the cache: 2.0 GB of 140 GB were downloaded."),
    ],
)
def test_the_trainer_is_told_which_model_the_preflight_left(downloaded: int, ending: str) -> None:
    cached = CACHED | {"downloadedBytes": downloaded}
    cluster = FakeCluster({**SPEC, "model": CLAIM})
    cluster.settle()
    cluster.set_pod(terminated(0, PREFLIGHT_PASSED | {"cachedModel": cached}))
    plan = make_plan(cluster.observed(), NOW, SETTINGS)
    assert plan.status["cachedModel"] == cached
    (passed,) = [item for item in plan.status["conditions"] if item["type"] == "PreflightPassed"]
    assert passed["message"].endswith(ending)
    assert plan.create is not None
    (container,) = plan.create["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert json.loads(variables["FINETUNE_CACHED_MODEL"]) == cached


def test_a_path_of_the_node_that_is_not_allowed_makes_no_pod() -> None:
    cluster = FakeCluster({**SPEC, "model": HOST_PATH})
    cluster.settle()
    assert cluster.created == []
    assert cluster.condition("Accepted") == ("False", "SpecInvalid")
    cluster.settings = replace(SETTINGS, pod_host_paths=("/mnt",))
    cluster.settle()
    assert cluster.created == ["a-preflight"]


def test_the_preflight_has_no_deadline_that_a_large_download_could_miss() -> None:
    preflight = make_plan(FakeCluster({**SPEC, "model": CLAIM}).observed(), NOW, SETTINGS).create
    assert preflight is not None
    assert "activeDeadlineSeconds" not in preflight["spec"]
    assert "activeDeadlineSeconds" not in preflight["spec"]["template"]["spec"]


@pytest.mark.cluster
@pytest.mark.parametrize("model", [CLAIM, HOST_PATH], ids=["claim", "hostPath"])
def test_the_api_server_takes_the_spec_and_both_jobs(api: Api, model: dict[str, Any]) -> None:
    resource = api.create_job(f"cached-{len(model['cache'].get('hostPath', ''))}", model=model)
    assert resource["spec"]["model"]["cache"] == model["cache"]
    job = FineTuneJob.of(resource)
    resolved = ResolvedModel("c0ffee", CachedModel.model_validate(CACHED))
    for built in (
        build_preflight_job(resource, job, 1, SETTINGS),
        build_trainer_job(resource, job, 1, resolved, SETTINGS, []),
    ):
        stored = api.plain(
            api.batch.create_namespaced_job(api.namespace, built, dry_run="All", field_validation="Strict")
        )
        assert covers(stored["spec"], built["spec"])
