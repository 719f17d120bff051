"""``finetune agent``: what users put into the template of pods that the operator may not change."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_engines import ENGINES
from finetune_operator.kube.kinds import POD
from finetune_operator.kube.workloads import WorkloadRef
from finetune_operator.pod_defaults import PodDefaults
from finetune_operator.resources.injection import AgentParameters, build_snippet
from tests.api.objects import ADAPTER_DEPLOYMENT, FINETUNE_JOB, Object, changed
from tests.cli.run import finetune

GUIDE = Path("docs/own-agent.md")
SELECTOR = {"matchLabels": {"app": "llama"}}


def serving(name: str, **spec: Any) -> Object:
    """Return an AdapterDeployment of pods with a selector, and with changed fields."""
    changes = {"metadata.name": name, "spec.servedName": name, "spec.target": {"selector": SELECTOR}}
    return changed(ADAPTER_DEPLOYMENT, changes | {f"spec.{path}": value for path, value in spec.items()})


def list_secrets(snippet: Object) -> list[str]:
    return [volume["secret"]["secretName"] for volume in snippet["spec"]["volumes"] if "secret" in volume]


def test_the_guide_shows_what_the_command_prints() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    example, shown = (part.split("```yaml")[1].split("```")[0] for part in text.split("<!-- the agent -->"))
    printed = finetune("agent", "-", "--image", "registry.example.com/finetune-operator:0.1.0", stdin=example)
    assert printed.code == 0
    assert yaml.safe_load(printed.out) == yaml.safe_load(shown)


def test_the_agent_is_what_the_operator_puts_in_with_the_secrets_of_all() -> None:
    job = changed(FINETUNE_JOB, {"spec.output.secretRef": {"name": "jobs"}})
    bots = [
        serving("one", **{"target.apiKeySecretRef": {"name": "keys"}}),
        serving("two", **{"adapter.secretRef": {"name": "own"}, "target.apiKeySecretRef": {"name": "keys"}}),
    ]
    files = yaml.safe_dump_all([job, *bots])
    printed = finetune("agent", "-", "--image", "op:1", "--report-url", "http://op:8080", stdin=files)
    group = WorkloadRef(POD, "app=llama").group
    parameters = AgentParameters(
        "vllm", ENGINES["vllm"], ("jobs", "keys", "own"), "op:1", "IfNotPresent", "http://op:8080"
    )
    assert yaml.safe_load(printed.out) == build_snippet(group, parameters)
    assert printed.err == ""


def test_the_chart_values_of_pods_are_settings_of_the_agent_too(tmp_path: Path) -> None:
    values = yaml.safe_load(Path("charts/finetune-operator/values.yaml").read_text(encoding="utf-8"))
    values["pods"] |= {
        "fixedUser": False,
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "volumes": [{"name": "ca", "configMap": {"name": "private-ca"}}],
        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    printed = finetune(
        "agent", "-", "--image", "op:1", "--report-url", "http://op:8080", "--values", str(file),
        stdin=yaml.safe_dump(serving("one", adapter={"uri": "s3://b/a", "digest": "sha256:" + "0" * 64})),
    )  # fmt: skip
    pods = PodDefaults.model_validate(values["pods"])
    parameters = AgentParameters("vllm", ENGINES["vllm"], (), "op:1", "IfNotPresent", "http://op:8080", pods)
    assert yaml.safe_load(printed.out) == build_snippet(WorkloadRef(POD, "app=llama").group, parameters)
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in yaml.safe_load(printed.out)["spec"][
        "initContainers"
    ][0]["env"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pods: {fixdUser: true}", "pods.fixdUser: unknown field"),
        ("pods: 7", "pods"),
        ("- 1", "must be one YAML object"),
        ("pods: {", "values.yaml:1: "),
    ],
)
def test_values_that_are_not_the_charts_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(text, encoding="utf-8")
    refused = finetune("agent", "-", "--image", "op:1", "--values", str(file), stdin=yaml.safe_dump(serving("one")))
    assert (refused.code, refused.out) == (1, "")
    assert message in refused.err


def test_each_selector_has_an_agent_of_its_own() -> None:
    other = {"selector": {"matchLabels": {"app": "qwen"}}, "engine": "sglang"}
    files = yaml.safe_dump_all([FINETUNE_JOB, serving("one"), serving("two", target=other)])
    printed = finetune("agent", "-", "--image", "op:1", stdin=files)
    assert [item["spec"]["containers"][0]["name"] for item in yaml.safe_load_all(printed.out)] == ["vllm", "sglang"]
    assert "# pods with app=qwen" in printed.out


def test_jobs_that_a_selector_may_choose_give_their_secrets() -> None:
    job = changed(FINETUNE_JOB, {"metadata.labels": {"app": "bot"}, "spec.output.secretRef": {"name": "jobs"}})
    bot = serving("one", adapter={"selector": {"matchLabels": {"app": "bot"}}})
    assert list_secrets(
        yaml.safe_load(finetune("agent", "-", "--image", "op:1", stdin=yaml.safe_dump_all([job, bot])).out)
    ) == ["jobs"]
    job["metadata"]["labels"] = {"app": "other"}
    other = finetune("agent", "-", "--image", "op:1", stdin=yaml.safe_dump_all([job, bot]))
    assert list_secrets(yaml.safe_load(other.out)) == []
    assert "its FineTuneJob is not in the file" in other.err


def test_a_target_into_which_the_operator_puts_the_agent_is_refused() -> None:
    refused = finetune("agent", "-", "--image", "op:1", stdin=yaml.safe_dump(ADAPTER_DEPLOYMENT))
    assert (refused.code, refused.out) == (1, "")
    assert "the operator puts the agent by itself" in refused.err
