"""Adapters, engines and storages that mean harm, or are broken in ways that look like success."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from finetune_api.reasons import Reason
from tests.agent.conftest import Make
from tests.agent.fake_engine import FakeEngine, write_adapter
from tests.agent.running_agent import RunningAgent, publish
from tools.testing.s3_server import S3Server
from tools.testing.waiting import wait_for

BOT = "support-bot"
SUCCESS = "Success: LoRA adapter added successfully."


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"status": "error", "message": "no room"}),
        pytest.param(PlainTextResponse(SUCCESS), marks=pytest.mark.exhaustive),
        pytest.param(Response(b""), marks=pytest.mark.exhaustive),
    ],
    ids=["an error inside", "success", "nothing"],
)
def test_an_engine_that_answers_200_and_loads_nothing_is_given_up(
    agent: RunningAgent, engine: FakeEngine, make: Make, answer: Response
) -> None:
    engine.fail_load = lambda name, path: answer
    agent.want(agent.adapter(BOT, make(0.7)))
    adapter = agent.wait_state(BOT, "Refused", 40)
    assert adapter.reason is Reason.ENGINE_REFUSED
    assert "does not list it" in adapter.message
    assert len(engine.calls) == 3


def test_an_engine_that_loads_another_path_never_gets_the_name(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    version = make(0.7)

    def load_elsewhere(name: str, path: str) -> Response:
        engine.loaded[name], engine.effects[name] = "/somewhere", 0.7
        return PlainTextResponse(SUCCESS)

    engine.fail_load = load_elsewhere
    agent.want(agent.adapter(BOT, version))
    assert "lists /somewhere under that name" in wait_for(
        lambda: agent.adapter_report(BOT).message, 20, "the failure is told"
    )
    assert BOT not in engine.loaded


def corrupt(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(directory: Path) -> Path:
        change(write_adapter(directory, 0.7))
        return directory

    return make


def replace_header(text: bytes, length: int | None = None) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)

    return change


def replace_file(name: str, text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_text(text)


DEEP = "[" * 100_000
CORRUPT = {
    "a header of a terabyte": replace_header(b"{}", 2**40),
    "a header that nests for ever": replace_header(DEEP.encode()),
    "a header that is a list": replace_header(b"[1, 2]"),
    "a configuration that nests for ever": replace_file("adapter_config.json", DEEP),
    "golden samples that nest for ever": replace_file("golden.json", DEEP),
    "a rank beyond all numbers": replace_file("adapter_config.json", '{"peft_type": "LORA", "r": 1e999}'),
    "golden samples of no token": replace_file("golden.json", '{"samples": []}'),
}


def test_files_that_are_made_to_break_the_reader_break_only_their_adapter(
    agent: RunningAgent, engine: FakeEngine, make: Make, s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    good = make(0.7)
    adapters = [agent.adapter(BOT, good)]
    for number, change in enumerate(CORRUPT.values()):
        directory = corrupt(change)(tmp_path / f"bad-{number}")
        adapters.append(agent.adapter(f"bad-{number}", publish(s3_server, bucket, f"bad-{number}", directory)))
    agent.want(*adapters)
    for number, title in enumerate(CORRUPT):
        adapter = agent.wait_state(f"bad-{number}", "Refused", 40)
        assert adapter.reason is Reason.ADAPTER_UNSUPPORTED, (title, adapter)
    agent.wait_active(BOT, good)
    agent.wait_ready()
    assert {name for _, name in engine.calls if name.startswith("bad")} == set()


def test_an_adapter_of_a_wider_model_is_refused(agent: RunningAgent, engine: FakeEngine, make: Make) -> None:
    """The engine says so only when it is asked, each in its own words; it is final."""
    message = "The size of tensor a (576) must match the size of tensor b (64)"
    engine.fail_load = lambda name, path: engine._error(message, "InternalServerError", 500)
    agent.want(agent.adapter(BOT, make(0.7)))
    adapter = agent.wait_state(BOT, "Refused")
    assert (adapter.reason, message in adapter.message) == (Reason.ADAPTER_UNSUPPORTED, True)
    assert len(engine.calls) == 1


def test_files_that_somebody_changed_on_the_volume_are_not_served_after_a_restart(
    agent: RunningAgent, engine: FakeEngine, make: Make
) -> None:
    """The volume outlives the agent. What lies there is read again, and its numbers are looked at."""
    version = make(0.7)
    agent.want(agent.adapter(BOT, version))
    agent.wait_active(BOT, version)
    (weights,) = agent.settings.adapters_directory.rglob("adapter_model.safetensors")
    content = weights.read_bytes()
    agent.stop()
    engine.kill()
    weights.write_bytes(content[:-4] + b"\xff\xff\xff\xff")
    engine.start()
    agent.start()
    assert agent.wait_state(BOT, "Refused").reason is Reason.ADAPTER_UNSUPPORTED
    assert BOT not in engine.loaded
