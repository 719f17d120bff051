"""`finetune compare` asks each engine for the adapter, not for the base under another name."""

import json
from pathlib import Path

import pytest

from tests.agent.fake_engine import FakeEngine, write_adapter
from tests.agent.fake_sglang import FakeSglang
from tests.cli.run import finetune


@pytest.mark.parametrize("kind", [FakeEngine, FakeSglang])
def test_base_and_adapter_answer_side_by_side(kind: type[FakeEngine], tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter", 0.7)
    with kind() as engine:
        engine.loaded["bot"], engine.effects["bot"] = str(path), 0.7
        options = [
            "--url",
            f"http://127.0.0.1:{engine.port}",
            "--model",
            "bot",
            "--prompt",
            "hello",
            "--max-tokens",
            "1",
        ]
        ran = finetune("compare", *options, "--output", "json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == [{"prompt": "hello", "base": "0.0", "adapter": "0.7"}]
