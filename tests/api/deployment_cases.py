"""Wrong AdapterDeployments."""

from finetune_api.adapterdeployment.analysis import (
    BOUNDS,
    ONE_ANALYSIS,
    ONE_BOUND,
    UNKNOWN_IN_ARGUMENT,
    UNKNOWN_PLACEHOLDER,
)
from finetune_api.adapterdeployment.canary import ONE_SIZE, STEPS_GROW, TRAFFIC_STEPS
from finetune_api.adapterdeployment.spec import (
    EMPTY_SELECTOR,
    EVERY_POD,
    FOLLOWS_NEWEST,
    MERGED_ROLLS,
    NAMED_CONTAINER,
    NO_CANARY,
    ONE_SOURCE,
    ONE_TARGET,
    OWN_PACE,
    ROLLS_DEPLOYMENTS,
    TRAFFIC_BY_VLLM,
)
from finetune_api.label_selector import WRONG_KEY, WRONG_VALUES
from tests.api.case import of_deployment
from tests.api.objects import DIGEST, REMOVE

URI_NEEDS_DIGEST = "uri needs digest: an adapter is pinned by the sha256 of its manifest.json"
S3_AND_URI = "s3 belongs to uri: remove it, because a FineTuneJob names its own S3 service"
TRAFFIC = {"inferenceModelRewrite": {"poolRef": {"name": "pool"}}}
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
    of_deployment("two targets", {"spec.target.statefulSetRef": {"name": "a"}}, "spec.target", ONE_TARGET),
    *(
        of_deployment(
            f"pods with a label that cannot be: {kind}",
            {"spec.target": {"selector": {"matchLabels": {"app": "vllm", key: "a"}}}},
            "spec.target",
            WRONG_KEY,
        )
        for kind, key in {
            "no name": "",
            "a space": "a b",
            "a name that is too long": 64 * "a",
            "two domains": "a.example/b/c",
            "a domain in capitals": "A.example/b",
            "a line": "app\n",
        }.items()
    ),
    of_deployment(
        "pods with a condition on a label that cannot be",
        {"spec.target": {"selector": {"matchExpressions": [{"key": "a b", "operator": "Exists"}]}}},
        "spec.target.selector.matchExpressions[0].key",
        "should match",
    ),
    of_deployment("every pod", {"spec.target": {"selector": {}}}, "spec.target", EVERY_POD),
    of_deployment("no target", {"spec.target": {"port": 8000}}, "spec.target", ONE_TARGET),
    of_deployment(
        "an unknown engine", {"spec.target.engine": "tgi"}, "spec.target.engine", 'supported values: "vllm"', "'vllm'"
    ),
    of_deployment(
        "an engine without LoRA that is to load at run time",
        {"spec.target.engine": "merged", "spec.target.container": "trtllm"},
        "spec",
        MERGED_ROLLS,
    ),
    of_deployment(
        "an engine without LoRA in no container",
        {"spec.target.engine": "merged", "spec.strategy": {"type": "Rolling"}},
        "spec.target",
        NAMED_CONTAINER,
    ),
    of_deployment("no served name", {"spec.servedName": REMOVE}, "spec.servedName", "Required value", "Field required"),
    of_deployment(
        "no pod may be away",
        {"spec.strategy.maxUnavailable": 0},
        "spec.strategy.maxUnavailable",
        "greater than or equal to 1",
    ),
    of_deployment(
        "a StatefulSet with Rolling",
        {"spec.strategy": {"type": "Rolling"}, "spec.target": {"statefulSetRef": {"name": "vllm"}}},
        "spec",
        ROLLS_DEPLOYMENTS,
    ),
    of_deployment(
        "a canary with Rolling",
        {"spec.strategy": {"type": "Rolling", "canary": {"steps": [{"pods": 1}]}}},
        "spec.strategy",
        NO_CANARY,
    ),
    of_deployment(
        "a pace of its own with Rolling",
        {"spec.strategy": {"type": "Rolling", "maxUnavailable": 2}},
        "spec.strategy",
        OWN_PACE,
    ),
    of_deployment(
        "a step of a canary without a size",
        {"spec.strategy": {"canary": {"steps": [{"pauseSeconds": 60}]}}},
        "spec.strategy.canary.steps[0]",
        ONE_SIZE,
    ),
    of_deployment(
        "a canary that gets a smaller share of the requests",
        {"spec.strategy": {"canary": {"steps": [{"trafficPercent": 50}, {"trafficPercent": 10}], "traffic": TRAFFIC}}},
        "spec.strategy.canary",
        STEPS_GROW,
    ),
    *(
        of_deployment(name, {"spec.strategy": {"canary": canary}}, "spec.strategy.canary", TRAFFIC_STEPS)
        for name, canary in {
            "shares of the requests without a gateway": {"steps": [{"trafficPercent": 5}]},
            "shares of the requests and of the pods": {
                "steps": [{"trafficPercent": 5}, {"percent": 50}],
                "traffic": TRAFFIC,
            },
        }.items()
    ),
    of_deployment(
        "shares of the requests of SGLang",
        {
            "spec.target.engine": "sglang",
            "spec.strategy": {"canary": {"steps": [{"trafficPercent": 5}], "traffic": TRAFFIC}},
        },
        "spec",
        TRAFFIC_BY_VLLM,
    ),
    of_deployment(
        "a gateway of an unknown group",
        {
            "spec.strategy": {
                "canary": {
                    "steps": [{"trafficPercent": 5}],
                    "traffic": {"inferenceModelRewrite": {"poolRef": {"name": "pool"}, "group": "gateway.example"}},
                }
            }
        },
        "spec.strategy.canary.traffic.inferenceModelRewrite.group",
        'supported values: "llm-d.ai"',
        "'llm-d.ai'",
    ),
    of_deployment(
        "a canary that shrinks",
        {"spec.strategy": {"canary": {"steps": [{"percent": 50}, {"percent": 10}]}}},
        "spec.strategy.canary",
        STEPS_GROW,
    ),
    *(
        of_deployment(name, {"spec.strategy": {"canary": {"steps": [{"pods": 1, "analysis": analysis}]}}}, field, text)
        for name, analysis, field, text in (
            ("an analysis of nothing", {}, "spec.strategy.canary.steps[0].analysis", ONE_ANALYSIS),
            (
                "an analysis without a bound",
                {"prometheus": {"url": "http://a", "query": "up"}},
                "spec.strategy.canary.steps[0].analysis.prometheus",
                ONE_BOUND,
            ),
            (
                "an analysis whose bounds are exchanged",
                {"prometheus": {"url": "http://a", "query": "up", "min": 2, "max": 1}},
                "spec.strategy.canary.steps[0].analysis.prometheus",
                BOUNDS,
            ),
            (
                "an analysis of two kinds",
                {"webhook": {"url": "http://a"}, "job": {"cronJobRef": {"name": "judge"}}},
                "spec.strategy.canary.steps[0].analysis",
                ONE_ANALYSIS,
            ),
            (
                "a CronJob without a name",
                {"job": {"cronJobRef": {}}},
                "spec.strategy.canary.steps[0].analysis.job.cronJobRef.name",
                "equired",
            ),
            (
                "an unknown placeholder in an argument",
                {"analysisTemplateRef": {"name": "x", "args": [{"name": "pods", "value": "{{ pod }}"}]}},
                "spec.strategy.canary.steps[0].analysis.analysisTemplateRef.args[0]",
                UNKNOWN_IN_ARGUMENT,
            ),
            (
                "an unknown placeholder",
                {"prometheus": {"url": "http://a", "query": "up{pod=~'{{ pod }}'}", "min": 2}},
                "spec.strategy.canary.steps[0].analysis.prometheus",
                UNKNOWN_PLACEHOLDER,
            ),
        )
    ),
    of_deployment("no tolerance", {"spec.verification.tolerance": 0}, "spec.verification.tolerance", "greater than 0"),
]
