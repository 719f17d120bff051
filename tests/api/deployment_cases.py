"""Wrong AdapterDeployments."""

from finetune_api.adapterdeployment.spec import EMPTY_SELECTOR, FOLLOWS_NEWEST, ONE_SOURCE, WRONG_VALUES
from tests.api.case import of_deployment
from tests.api.objects import DIGEST, REMOVE

URI_NEEDS_DIGEST = "uri needs digest: an adapter is pinned by the sha256 of its manifest.json"
S3_AND_URI = "s3 belongs to uri: remove it, because a FineTuneJob names its own S3 service"
S3_ADAPTER = {"uri": "s3://adapters/a", "digest": DIGEST}

DEPLOYMENT_CASES = [
    of_deployment(
        "a job and an address",
        {"spec.adapter": {"fineTuneJobRef": {"name": "a"}, **S3_ADAPTER}},
        "spec.adapter",
        ONE_SOURCE,
    ),
    of_deployment("no adapter", {"spec.adapter": {}}, "spec.adapter", ONE_SOURCE),
    of_deployment(
        "a selector that chooses everything",
        {"spec.adapter": {"selector": {"matchLabels": {}}}},
        "spec.adapter",
        EMPTY_SELECTOR,
    ),
    of_deployment(
        "a selector with an operator that lacks values",
        {"spec.adapter": {"selector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}},
        "spec.adapter",
        WRONG_VALUES,
    ),
    of_deployment(
        "a selector with a digest",
        {"spec.adapter": {"selector": {"matchLabels": {"app": "a"}}, "digest": S3_ADAPTER["digest"]}},
        "spec.adapter",
        FOLLOWS_NEWEST,
    ),
    of_deployment(
        "an address without a digest", {"spec.adapter": {"uri": "s3://adapters/a"}}, "spec.adapter", URI_NEEDS_DIGEST
    ),
    of_deployment(
        "an object store without an address", {"spec.adapter.s3": {"region": "eu-1"}}, "spec.adapter", S3_AND_URI
    ),
    of_deployment(
        "a digest that is none",
        {"spec.adapter": {**S3_ADAPTER, "digest": "sha256:12"}},
        "spec.adapter.digest",
        "should match",
    ),
    of_deployment(
        "an unknown engine", {"spec.target.engine": "tgi"}, "spec.target.engine", 'supported values: "vllm"', "'vllm'"
    ),
    of_deployment("no served name", {"spec.servedName": REMOVE}, "spec.servedName", "Required value", "Field required"),
    of_deployment(
        "no pod may be away",
        {"spec.strategy.maxUnavailable": 0},
        "spec.strategy.maxUnavailable",
        "greater than or equal to 1",
    ),
    of_deployment("no tolerance", {"spec.verification.tolerance": 0}, "spec.verification.tolerance", "greater than 0"),
]
