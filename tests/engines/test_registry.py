"""The registry of engines: adding one takes one file and one name, and operator, agent and trainer use it."""

import asyncio
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest

from finetune_agent.agent import Agent, connect_engine
from finetune_agent.compatibility import IncompatibleError, check_adapter
from finetune_agent.settings import Settings
from finetune_api.adapterdeployment import AdapterDeploymentSpec, Target
from finetune_api.engines import EngineName
from finetune_api.finetunejob import AdapterStatus
from finetune_api.messages import DesiredState
from finetune_engines import ENGINES, engines_that_serve
from finetune_engines.base import EngineKeys
from finetune_operator.reconcile.adapterdeployment.model import Obstacle, ServingTarget
from finetune_operator.reconcile.adapterdeployment.resolve import check_target, find_target
from finetune_operator.resources.injection import AgentParameters, build_injection
from finetune_trainer.report import serving
from finetune_trainer.report.contents import Report
from tests.adapterdeployment.groups import NAME, TARGET, adapter, deployment
from tests.agent.fake_engine import write_adapter
from tests.api.objects import changed


class TinyDriver:
    """Driver of the test's engine, which only remembers its address."""

    def __init__(self, url: str, keys: EngineKeys, paths: Mapping[str, str]) -> None:
        """Keep the address."""
        assert not paths
        self.address = (url, keys)


VLLM = ENGINES["vllm"]
TINY = replace(
    VLLM,
    name="tiny",  # type: ignore[arg-type]  # a name of the test only
    title="Tiny",
    start_words=("tiny-server",),
    lora_arguments=("--adapters", "--adapter"),
    max_rank_argument="--adapter-rank",
    default_max_rank=2,
    ranks=(2, 4),
    environment={"TINY_RELOAD": ("yes",)},
    find_unsupported=lambda config: ["it has a bias"] if config.get("bias", "none") != "none" else [],
    adapter_command=lambda base, adapter, name, rank: f"tiny-server {base} --adapters {name}={adapter}",
    connect=TinyDriver,  # type: ignore[arg-type]  # no test asks it anything
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a second engine for the length of a test."""
    monkeypatch.setitem(cast(dict[str, Any], ENGINES), "tiny", TINY)


def read_target(args: list[str]) -> tuple[AdapterDeploymentSpec, object]:
    spec = AdapterDeploymentSpec.model_validate(adapter()["spec"])
    spec = spec.model_copy(update={"target": spec.target.model_copy(update={"engine": "tiny", "container": "vllm"})})
    return spec, find_target(deployment(args=args), TARGET, spec)


def test_each_name_has_a_module_with_its_engine() -> None:
    assert list(ENGINES) == list(get_args(EngineName))
    for name in get_args(EngineName):
        assert import_module(f"finetune_engines.{name}").ENGINE.name == name


def test_the_default_engine_of_a_message_is_at_its_port() -> None:
    assert DesiredState().port == ENGINES[DesiredState().engine].port


@pytest.mark.parametrize("name", get_args(EngineName))
def test_container_and_port_have_the_engines_defaults(name: EngineName) -> None:
    engine = ENGINES[name]
    own = {"container": name} if engine.serves_merged else {}
    serving = {
        "target": {"deploymentRef": {"name": NAME}, "engine": name, **own},
        "strategy": {"type": "Rolling" if engine.serves_merged else "Hot"},
    }
    spec = AdapterDeploymentSpec.model_validate(changed(adapter()["spec"], serving))
    item = deployment()
    item["spec"]["template"]["spec"]["containers"][0]["name"] = name
    target = find_target(item, TARGET, spec)
    assert isinstance(target, ServingTarget)
    assert (target.container, target.port) == (name, engine.port)
    description = Target.model_fields["port"].description or ""
    assert f"{engine.port} for {engine.title}" in description


def test_engines_are_known_without_an_http_client() -> None:
    program = "import sys; sys.modules['httpx'] = None; import finetune_engines; print(list(finetune_engines.ENGINES))"
    completed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert completed.stdout.strip() == str(list(get_args(EngineName)))


@pytest.mark.usefixtures("tiny")
def test_the_operator_reads_the_engines_arguments_and_sets_its_variables() -> None:
    _, target = read_target(["tiny-server", "--adapters"])
    assert not isinstance(target, Obstacle)
    assert (target.engine_args.lora, target.engine_args.max_lora_rank) == (True, 2)  # type: ignore[attr-defined]
    plan = AgentParameters("vllm", TINY, (), "image", "Always", "")
    (container,) = build_injection(deployment(), plan)["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "TINY_RELOAD", "value": "yes"}]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("args", "rank", "servable_by", "message"),
    [
        (["tiny-server"], 2, ["tiny"], "starts Tiny without --adapters"),
        (["tiny-server", "--adapters"], 2, ["vllm"], "Tiny cannot serve this adapter"),
        (["tiny-server", "--adapters"], 3, ["tiny"], "start Tiny with --adapter-rank 4, or train with rank 2 or less"),
    ],
)
def test_the_operators_messages_name_the_engine(
    args: list[str], rank: int, servable_by: list[str], message: str
) -> None:
    _, target = read_target(args)
    status = AdapterStatus(
        uri="s3://b/a",
        digest="sha256:" + "1" * 64,
        size_bytes=1,
        base_model="m",
        peft_type="LORA",
        rank=rank,
        servable_by=servable_by,
    )
    obstacle = check_target("bot", status, target, TARGET)  # type: ignore[arg-type]
    assert obstacle is not None
    assert message in obstacle.message


@pytest.mark.usefixtures("tiny")
def test_the_agent_checks_for_the_engine_and_connects_to_it(tmp_path: Path) -> None:
    check_adapter(write_adapter(tmp_path / "dora", 0.5, use_dora=True, rank=4), TINY, 4)
    with pytest.raises(IncompatibleError, match="Tiny cannot serve this adapter: it has a bias"):
        check_adapter(write_adapter(tmp_path / "bias", 0.5, bias="all"), TINY, 4)
    with pytest.raises(IncompatibleError, match="--adapter-rank"):
        check_adapter(write_adapter(tmp_path / "rank", 0.5, rank=8), TINY, 4)
    desired = DesiredState(port=9).model_copy(update={"engine": "tiny"})
    driver = asyncio.run(connect_engine(Agent(Settings(pod="web-1")), desired))
    assert driver.address == ("http://127.0.0.1:9", EngineKeys())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("tiny")
def test_an_adapter_is_servable_by_each_engine_that_takes_it() -> None:
    assert engines_that_serve({"peft_type": "LORA"}) == ["vllm", "sglang", "tiny"]
    assert engines_that_serve({"peft_type": "IA3"}) == ["tiny"]
    assert engines_that_serve({"peft_type": "LORA", "bias": "all"}) == []


@pytest.mark.usefixtures("tiny")
def test_the_trainers_report_has_a_command_for_each_engine() -> None:
    fields = {
        "peft_type": "LORA",
        "objective": "sft",
        "servable_by": ["tiny"],
        "base_on_hub": True,
        "base_model": "org/base",
        "adapter_uri": "/out/adapter",
        "name": "bot",
        "rank": 4,
    }
    report = cast(Report, SimpleNamespace(**fields))
    commands = serving.list_serving_commands(report)
    assert commands == {"vLLM": None, "SGLang": None, "Tiny": "tiny-server org/base --adapters bot=/out/adapter"}
