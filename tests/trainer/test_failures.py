"""Each failure of an attempt, from outside: exit code and 4 KiB of JSON say why and what to do, early if possible."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from trl.trainer.sft_trainer import SFTTrainer

from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import PreflightResult, TrainerResult
from finetune_api.reasons import EXIT_CODES, USER_ERRORS, Reason
from finetune_trainer import attempt, preflight
from finetune_trainer.runtime.configuration import read_job
from finetune_trainer.runtime.interruption import Interruption
from finetune_trainer.runtime.settings import Settings, read_settings
from tools.testing.faulty_proxy import FaultyProxy, ProxyFault, running_faulty_proxy
from tools.testing.hub_server import Hub, running_hub
from tools.testing.tiny_model import make_tiny_model
from tools.testing.trainer_jobs import CHATS, ROWS, AtStep, Workbench, diverging_sections, jsonl, train

MANIFEST = "adapter/manifest.json"


@dataclass
class Pod:
    """What a pod of the trainer has around it; a case spoils some of it before it starts."""

    bench: Workbench
    hub: Hub
    proxy: FaultyProxy
    patch: pytest.MonkeyPatch
    spec: dict[str, Any] = field(default_factory=dict)
    starts: int = 0

    def job(self) -> dict[str, Any]:
        """Return the job. It reaches its bucket through the proxy."""
        job = self.bench.job(**self.spec)
        job["spec"]["output"]["s3"]["endpoint"] = self.proxy.endpoint
        return job

    def model(self, copy_of: str = "tiny") -> Path:
        """Write a model on a claim, for the case to spoil."""
        self.spec["model"] = {"uri": "pvc://spoilt/model"}
        directory = self.bench.mounts / "claims" / "spoilt" / "model"
        shutil.copytree((self.bench.mounts / "claims" / "models").resolve() / copy_of, directory)
        return directory

    def secret(self, token: str) -> None:
        """Write a Secret with a token for the hub."""
        directory = self.bench.mounts / "secrets" / "hub"
        directory.mkdir()
        (directory / "HF_TOKEN").write_text(token)

    def end(self, main: Callable[[Settings], int], scratch: Path | None = None) -> tuple[int, bytes]:
        """Run a command of the trainer to its end; its exit code and its termination message."""
        self.starts += 1
        log = self.bench.directory / f"termination-log-{self.starts}"
        environment = {
            "FINETUNE_JOB": json.dumps(self.job()),
            "FINETUNE_MOUNTS": str(self.bench.mounts),
            "FINETUNE_SCRATCH": str(scratch or self.bench.directory / f"pod-{self.starts}"),
            "FINETUNE_TERMINATION_LOG": str(log),
            "HF_ENDPOINT": self.hub.endpoint,
        }
        job = read_job(environment)
        assert isinstance(job, FineTuneJob), job
        return main(read_settings(job, environment)), log.read_bytes()

    def train(self, scratch: Path | None = None) -> tuple[int, TrainerResult]:
        """Run the trainer; exit code and result."""
        code, message = self.end(attempt.main, scratch)
        assert len(message) <= 4096
        result = TrainerResult.model_validate_json(message)
        assert code == (0 if result.reason == "Succeeded" else EXIT_CODES[Reason(result.reason)])
        return code, result


@pytest.fixture
def pod(bench: Workbench, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pod]:
    """Return a pod in which all is well."""
    monkeypatch.setattr(Interruption, "install", lambda _: None)  # the signals are pytest's
    pickled = tmp_path / "pickled"
    shutil.copytree(base_model, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04")
    repositories = {"acme/tiny": base_model, "acme/gated": base_model, "acme/pickled": pickled}
    with running_hub(repositories, gated={"acme/gated"}) as hub, running_faulty_proxy(bench.server.port) as proxy:
        yield Pod(bench, hub, proxy, monkeypatch)


def at_each_step(pod: Pod, action: Callable[[], object]) -> None:
    """Have something happen in the training's steps."""

    def step(*_: Any, **__: Any) -> torch.Tensor:
        action()
        raise AssertionError("the step went on")

    pod.patch.setattr(SFTTrainer, "training_step", step)


def cuda_out_of_memory(pod: Pod) -> None:
    def allocate() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")

    at_each_step(pod, allocate)


def cuda_without_an_allocator(pod: Pod) -> None:
    def allocate() -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    at_each_step(pod, allocate)


def host_out_of_memory_in_torch(pod: Pod) -> None:
    at_each_step(pod, lambda: torch.empty(2**50))


def host_out_of_memory_in_python(pod: Pod) -> None:
    at_each_step(pod, lambda: bytearray(2**60))


def no_such_model(pod: Pod) -> None:
    pod.spec["model"] = {"uri": "hf://acme/nothing"}


def no_such_revision(pod: Pod) -> None:
    pod.spec["model"] = {"uri": "hf://acme/tiny", "revision": "v9"}


def nothing_at_the_address(pod: Pod) -> None:
    pod.spec["model"] = {"uri": f"s3://{pod.bench.bucket}/models/nothing"}


def nothing_on_the_claim(pod: Pod) -> None:
    pod.spec["model"] = {"uri": "pvc://models/nothing"}


def gated_without_a_token(pod: Pod) -> None:
    pod.spec["model"] = {"uri": "hf://acme/gated"}


def gated_with_a_wrong_token(pod: Pod) -> None:
    pod.secret("hf_wrongtoken")
    pod.spec["model"] = {"uri": "hf://acme/gated", "secretRef": {"name": "hub"}}


def full_for_uploads(status: int, code: str) -> Callable[[Pod], None]:
    def full(pod: Pod) -> None:
        pod.proxy.choose_fault = lambda method, _: (status, code) if method in ("PUT", "POST") else None

    full.__name__ = code
    return full


def cut_off_weights(pod: Pod) -> None:
    path = pod.model() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def model_in_s3(pod: Pod, spoil: Callable[[bytes], bytes]) -> None:
    source = (pod.bench.mounts / "claims" / "models" / "tiny").resolve()
    for path in source.iterdir():
        content = spoil(path.read_bytes()) if path.suffix == ".safetensors" else path.read_bytes()
        pod.bench.server.store().client.put_object(
            Bucket=pod.bench.bucket, Key=f"models/base/{path.name}", Body=content
        )
    pod.spec["model"] = {"uri": f"s3://{pod.bench.bucket}/models/base"}


def cut_off_weights_in_s3(pod: Pod) -> None:
    model_in_s3(pod, lambda content: content[:-1000])


def weights_that_are_none(pod: Pod) -> None:
    (pod.model() / "model.safetensors").write_bytes(os.urandom(4000))


def pickled_on_a_claim(pod: Pod) -> None:
    directory = pod.model()
    (directory / "model.safetensors").unlink()
    torch.save({}, directory / "pytorch_model.bin")


def pickled_on_the_hub(pod: Pod) -> None:
    pod.spec["model"] = {"uri": "hf://acme/pickled"}


def remote_code(pod: Pod) -> None:
    path = pod.model() / "config.json"
    brought = {"model_type": "novel", "auto_map": {"AutoModelForCausalLM": "modeling_novel.NovelForCausalLM"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | brought))


def chats_without_a_template(pod: Pod) -> None:
    shutil.rmtree(pod.model())
    make_tiny_model(pod.bench.mounts / "claims" / "spoilt" / "model", chat=False)
    pod.spec["dataset"] = {"uri": pod.bench.dataset(jsonl(CHATS))}


def diverging(pod: Pod) -> None:
    pod.spec.update(diverging_sections(pod.bench))
    pod.spec["checkpoint"] = {"everySteps": 1}


TABLE: list[tuple[Callable[[Pod], None], Reason, list[str], bool]] = [
    (cuda_out_of_memory, Reason.OUT_OF_MEMORY, ["Tried to allocate 2.00 GiB", "the GPU has too little memory"], False),
    (cuda_without_an_allocator, Reason.OUT_OF_MEMORY, ["the GPU has too little memory"], False),
    (host_out_of_memory_in_torch, Reason.HOST_OUT_OF_MEMORY, ["spec.resources.limits.memory"], False),
    (host_out_of_memory_in_python, Reason.HOST_OUT_OF_MEMORY, ["spec.resources.limits.memory"], False),
    (no_such_model, Reason.MODEL_NOT_FOUND, ["spec.model.uri", "hf://acme/nothing does not exist"], True),
    (no_such_revision, Reason.MODEL_NOT_FOUND, ["spec.model.revision", "'v9'"], True),
    (nothing_at_the_address, Reason.MODEL_NOT_FOUND, ["/models/nothing", "config.json"], True),
    (nothing_on_the_claim, Reason.MODEL_NOT_FOUND, ["pvc://models/nothing has no config.json"], True),
    (gated_without_a_token, Reason.MODEL_ACCESS_DENIED, ["{hub}/acme/gated", "HF_TOKEN", "spec.model.secretRef"], True),
    (
        gated_with_a_wrong_token,
        Reason.MODEL_ACCESS_DENIED,
        ["{hub}/acme/gated", "check that HF_TOKEN in spec.model.secretRef is valid"],
        True,
    ),
    (full_for_uploads(507, "XMinioStorageFull"), Reason.UPLOAD_FAILED, ["no space left for s3://", "quota"], True),
    (full_for_uploads(403, "QuotaExceeded"), Reason.UPLOAD_FAILED, ["no space left for s3://", "quota"], True),
    (cut_off_weights, Reason.MODEL_UNSUPPORTED, ["spec.model.uri", "model.safetensors", "truncated"], True),
    (cut_off_weights_in_s3, Reason.MODEL_UNSUPPORTED, ["spec.model.uri", "model.safetensors", "truncated"], True),
    (weights_that_are_none, Reason.MODEL_UNSUPPORTED, ["spec.model.uri", "model.safetensors"], True),
    (pickled_on_a_claim, Reason.MODEL_UNSUPPORTED, ["pickled weights can run code", "save_pretrained"], True),
    (pickled_on_the_hub, Reason.MODEL_UNSUPPORTED, ["pickled weights can run code", "save_pretrained"], True),
    (remote_code, Reason.MODEL_UNSUPPORTED, ["spec.model.trustRemoteCode", "modeling_novel.NovelForCausalLM"], True),
    (chats_without_a_template, Reason.MODEL_UNSUPPORTED, ["no chat template", "spec.dataset.template"], True),
    (diverging, Reason.LOSS_DIVERGED, ["spec.training.learningRate", "at step", "checkpoints before"], False),
]
"""What is spoilt, the reason, what the message must say, and whether preflight finds it before a GPU is requested."""


@pytest.mark.parametrize(
    ("spoil", "reason", "message_parts", "early"), TABLE, ids=[row[0].__name__.replace("_", " ") for row in TABLE]
)
def test_a_failure_says_why_and_what_to_do(
    pod: Pod, spoil: Callable[[Pod], None], reason: Reason, message_parts: list[str], early: bool
) -> None:
    spoil(pod)
    if early:
        code, message = pod.end(preflight.main)
        assert len(message) <= 4096
        preflight_result = PreflightResult.model_validate_json(message)
        assert [problem.reason for problem in preflight_result.problems] == [reason], preflight_result.problems
        assert code == EXIT_CODES[reason]
        for text in message_parts:
            assert text.format(hub=pod.hub.endpoint) in str(preflight_result.problems[0])
    _, result = pod.train()
    assert result.reason is reason, result.message
    for text in message_parts:
        assert text.format(hub=pod.hub.endpoint) in result.message
    assert b"hf_wrongtoken" not in result.model_dump_json().encode()
    assert not [key for key in pod.bench.objects() if key.endswith(MANIFEST)], "nothing counts as finished"


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a file system that can really be full."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_reported_as_such_and_costs_no_more_than_an_interval(pod: Pod, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "24m") as disk:

        def fill() -> None:
            with (disk / "junk").open("wb") as junk, pytest.raises(OSError, match="No space"):
                while True:
                    junk.write(bytes(4096))
                    junk.flush()

        reporter = AtStep(3, fill)
        pod.patch.setattr(attempt, "Reporter", lambda *_: reporter)
        _, result = pod.train(disk / "scratch")
    assert result.reason is Reason.TRAINER_ERROR
    assert "there is no space left for" in result.message
    assert "give the pod more ephemeral storage" in result.message
    assert Reason.TRAINER_ERROR not in USER_ERRORS, "another node may have room"
    again, _ = train(pod.bench.settings_of(pod.job()))
    assert (again.reason, again.resumed_from_step) == ("Succeeded", 2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_without_room_for_the_data_is_reported_as_such(pod: Pod, tmp_path: Path) -> None:
    pod.bench.dataset(jsonl(ROWS * 200))
    with small_disk(tmp_path / "disk", "256k") as disk:
        _, result = pod.train(disk / "scratch")
    assert result.reason is Reason.TRAINER_ERROR
    assert "there is no space left for" in result.message


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.filterwarnings("ignore:Not enough free disk space")
@pytest.mark.parametrize("directory", ["hub", "s3"])
def test_a_disk_without_room_for_the_model_is_reported_as_such(pod: Pod, tmp_path: Path, directory: str) -> None:
    pod.spec["model"] = {"uri": "hf://acme/tiny"}
    if directory == "s3":
        model_in_s3(pod, lambda content: content)
    with small_disk(tmp_path / "disk", "128k") as disk:
        _, result = pod.train(disk / "scratch")
    assert result.reason is Reason.TRAINER_ERROR
    assert "there is no space left for" in result.message


def first(number: int, fault: ProxyFault, fragment: str, *methods: str) -> Callable[[str, str], ProxyFault]:
    """Return a choice of faults: this one for the first requests of these methods whose path contains ``fragment``."""
    faults_left = [number]

    def choose_fault(method: str, path: str) -> ProxyFault:
        if fragment not in path or method not in methods or not faults_left[0]:
            return None
        faults_left[0] -= 1
        return fault

    return choose_fault


@pytest.mark.parametrize(("fault", "times"), [("cut", 4), ((503, "SlowDown"), 4), ("slow", 2)])
def test_an_s3_service_that_stumbles_only_costs_time(pod: Pod, fault: ProxyFault, times: int) -> None:
    proxy = pod.proxy
    weights = first(times, fault, ".safetensors", "PUT")
    manifests = first(times, fault, "manifest.json", "PUT")
    proxy.choose_fault = lambda method, path: weights(method, path) or manifests(method, path)
    _, result = pod.train()
    assert result.reason == "Succeeded", result.message
    assert len([fault for *_, fault in proxy.requests if fault]) == 2 * times, "boto3 itself tries three times"
    manifest = pod.bench.manifest()
    for entry in manifest.files:
        assert len(pod.bench.read(f"team/job/adapter/{entry.path}")) == entry.size_bytes


def test_a_torn_upload_is_never_taken_for_a_complete_one(pod: Pod) -> None:
    pod.patch.setattr(attempt, "PATIENCE_SECONDS", 1.0)
    pod.proxy.choose_fault = lambda method, path: (
        "cut" if method == "PUT" and "step-00000006/optimizer.pt" in path else None
    )
    _, failed = pod.train()
    assert failed.reason is Reason.UPLOAD_FAILED
    assert f"the S3 service at {pod.proxy.endpoint} does not answer" in failed.message
    stored = [key for key in pod.bench.objects() if "/step-00000006/" in key]
    assert stored
    assert not [key for key in stored if key.endswith("manifest.json")]
    pod.proxy.choose_fault = first(2, "cut", "/checkpoints/run-", "GET")
    _, result = pod.train()
    assert result.reason == "Succeeded", result.message
    assert failed.checkpoint is not None
    assert result.resumed_from_step == failed.checkpoint.step < 6, "half an answer is asked for again"


@pytest.mark.parametrize("with_end", [True, False], ids=["with an end token", "with neither"])
def test_a_tokenizer_without_a_padding_token_trains(pod: Pod, with_end: bool) -> None:
    path = pod.model() / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for name in ("pad_token", *(() if with_end else ("eos_token",))):
        del config[name]
    path.write_text(json.dumps(config))
    _, result = pod.train()
    assert result.reason == "Succeeded", result.message
    warned = any("no end-of-text token" in warning for warning in result.warnings)
    assert warned is not with_end
    weights = load(pod.bench.weights())
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_dataset_that_changed_is_reported_from_outside(pod: Pod) -> None:
    pod.patch.setattr(SFTTrainer, "training_step", stopping_after(3, SFTTrainer.training_step))
    assert pod.train()[1].reason is Reason.TRAINER_ERROR
    pod.bench.dataset(jsonl([*ROWS, {"prompt": "One more?", "completion": "Yes."}]))
    _, result = pod.train()
    assert result.reason is Reason.DATASET_CHANGED
    assert "train.jsonl was sha256:" in result.message
    assert "spec.dataset.uri" in result.message


def stopping_after(calls: int, real: Any) -> Any:
    """Return a step that fails after some that went well."""
    steps_done = [0]

    def step(*arguments: Any, **keywords: Any) -> Any:
        steps_done[0] += 1
        if steps_done[0] > 2 * calls:
            raise OSError(errno.EIO, "a fault of the test")
        return real(*arguments, **keywords)

    return step
