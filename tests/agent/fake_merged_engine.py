"""Serve a strict fake of an engine without LoRA, by the OpenAI interface: what real ones differ in can be chosen."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from finetune_api.manifest import MergedManifest, Origin
from finetune_api.messages import DesiredVersion
from finetune_api.uris import S3Uri
from finetune_artifacts.upload import put_manifest, upload_directory
from tests.agent.fake_engine import VOCABULARY, FakeEngine, golden, logprobs
from tools.testing.s3_server import S3Server

WEIGHTS = "model.safetensors"


def write_merged(directory: Path, effect: float, *, applied: float | None = None) -> Path:
    """Write a merged model, with the adapter's effect and the one that shows in the engine."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "golden.json").write_text(golden(1, effect).model_dump_json(by_alias=True))
    header = {
        "__metadata__": {"effect": str(effect if applied is None else applied)},
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    }
    text = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    return directory


def publish_merged(server: S3Server, bucket: str, directory: Path) -> DesiredVersion:
    """Put a merged model and its manifest into S3, as the merge does."""
    uri = S3Uri(bucket, f"jobs/{directory.name}/merged")
    store = server.store()
    manifest = MergedManifest(
        job=Origin(namespace="default", name=directory.name, uid="0"),
        created_at="2026-01-01T00:00:00Z",
        adapter_digest="sha256:" + "1" * 64,
        base_model="test",
        precision="bf16",
        files=upload_directory(store, uri, directory),
    )
    version = DesiredVersion(uri=str(uri), digest=put_manifest(store, uri, manifest))
    shutil.rmtree(directory)
    return version


class FakeMergedEngine(FakeEngine):
    """A fake engine that serves the model in ``path``; ``card`` is its only card, and ``echoes`` says what it tells."""

    def __init__(self, path: str = "") -> None:
        """Choose a port; nothing runs yet."""
        super().__init__()
        self.lora_routes = False
        self.path = path
        self.card: dict[str, object] = {}
        self.echoes = True
        self.refusal: tuple[int, str] | None = None
        self.spoiled = False

    async def _models(self, request: Request) -> Response:
        if denied := self._denied(request):
            return denied
        return JSONResponse({"object": "list", "data": [{"object": "model", **self.card}] if self.card else []})

    async def _complete(self, body: dict[str, Any]) -> Response:
        if body["model"] != self.card["id"]:
            return self._error(f"The model `{body['model']}` does not exist.", "NotFoundError", 404)
        if self.refusal is not None:
            return self._error(self.refusal[1], "BadRequestError", self.refusal[0])
        tokens = body["prompt"]
        assert max(tokens) < VOCABULARY
        choice: dict[str, object] = {"index": 0, "text": "x"}
        if self.echoes and body["echo"]:
            effect = 0.0 if self.spoiled else _read_effect(Path(self.path))
            choice["logprobs"] = {"token_logprobs": [None, *logprobs(self.seed, effect, tokens), -0.5]}
        elif body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": [-0.5]}  # of the one token that it generates
        return JSONResponse({"object": "text_completion", "model": body["model"], "choices": [choice]})


def _read_effect(directory: Path) -> float:
    content = (directory / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return float(json.loads(content[8 : 8 + length])["__metadata__"]["effect"])
