"""The demo's parts that need no cluster: its texts, its model, its manifests, and what it says to a wrong call."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from devcluster import corpus, model, targets
from devcluster.demo import EXAMPLES, image_values, set_images
from devcluster.targets import PACKAGES_AT, Images

DIGEST = f"sha256:{'0' * 64}"


def deployment_of(example: str) -> dict[str, object]:
    documents = yaml.safe_load_all((EXAMPLES / example).read_text())
    deployment: dict[str, object] = next(document for document in documents if document["kind"] == "Deployment")
    return deployment


def test_hamlet_is_held_out() -> None:
    texts = corpus.shakespeare()
    train = set(texts.train.read_text().split("\n\n"))
    held_out = [passage for passage in texts.validation.read_text().split("\n\n") if len(passage) > 60]
    assert len(held_out) > 500
    assert [passage for passage in held_out if passage in train] == []
    assert "To be, or not to be,--that is the question:--" in texts.validation.read_text()
    assert "Now is the winter of our discontent" in texts.train.read_text()


@pytest.mark.trains
def test_the_model_knows_the_capital_of_france() -> None:
    # The imports take seconds, which nobody else should wait for.
    from transformers import pipeline

    generate = pipeline("text-generation", model=str(model.smollm2()))
    answer = generate("The capital of France is", max_new_tokens=2, do_sample=False)
    assert answer[0]["generated_text"].startswith("The capital of France is Paris")


@pytest.mark.trains
def test_the_tiny_model_has_the_tokenizer_of_the_real_one() -> None:
    tiny, real = model.tiny_llama(), model.smollm2()
    assert (tiny / "tokenizer.json").read_bytes() == (real / "tokenizer.json").read_bytes()
    assert (tiny / "chat_template.jinja").read_bytes() == (real / "chat_template.jinja").read_bytes()
    assert json.loads((tiny / "config.json").read_text())["vocab_size"] == 49152
    assert (tiny / "model.safetensors").stat().st_size < 14_000_000


def test_image_references_become_the_charts_values() -> None:
    assert image_values("image", f"10.0.0.1:5000/finetune-operator@{DIGEST}") == [
        "image.repository=10.0.0.1:5000/finetune-operator",
        f"image.digest={DIGEST}",
    ]
    assert image_values("image", "registry.example.com:443/team/finetune-operator:abc") == [
        "image.repository=registry.example.com:443/team/finetune-operator",
        "image.tag=abc",
    ]


def test_an_engine_image_of_the_users_own_is_used_as_it_is() -> None:
    deployment = deployment_of("vllm.yaml")
    set_images(deployment, Images(operator="our/operator:1", trainer="our/trainer:1", engine="their/vllm:2"))
    pod = yaml.safe_load(yaml.safe_dump(deployment))["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "their/vllm:2"
    assert pod["initContainers"][0]["image"] == "our/operator:1"
    assert [volume["name"] for volume in pod["volumes"]] == ["models", "tmp", "s3-credentials"]


def test_the_dev_clusters_engine_finds_its_packages_on_the_node() -> None:
    deployment = deployment_of("vllm.yaml")
    set_images(
        deployment, Images("our/operator:1", "our/trainer:1", engine="base:1", engine_packages=Path("/node/vllm"))
    )
    pod = yaml.safe_load(yaml.safe_dump(deployment))["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert {"name": "PYTHONPATH", "value": PACKAGES_AT} in container["env"]
    assert {"name": "packages", "mountPath": PACKAGES_AT, "readOnly": True} in container["volumeMounts"]
    assert {"name": "packages", "hostPath": {"path": "/node/vllm"}} in pod["volumes"]


def test_a_context_without_a_registry_is_an_error_that_says_what_is_missing() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "REGISTRY"} | {"CONTEXT": "kind-kind"}
    completed = subprocess.run(
        [sys.executable, "-m", "devcluster.demo", "up"], env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 2
    assert "REGISTRY" in completed.stderr


def test_on_the_users_own_cluster_the_images_come_from_their_base_and_go_to_their_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "asked"
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(targets.ClusterTarget, "kubectl", lambda *_: "")
    monkeypatch.setattr("devcluster.binaries.ensure", lambda _: None)
    target = targets.own_target(
        "registry.example.com/team", "kind-kind", "their/vllm:2", "mirror.example.com/python:3.11"
    )
    (operator_build, operator_push, trainer_build, _) = log.read_text().splitlines()
    assert operator_build.startswith("build --build-arg=BASE_IMAGE=mirror.example.com/python:3.11 --file")
    assert "/Dockerfile --target trainer --tag" in trainer_build
    assert operator_push == f"push {target.images.operator}"
    assert target.images.operator.startswith("registry.example.com/team/finetune-operator:")
    assert target.images.engine == "their/vllm:2"
    assert (target.context, target.options) == ("kind-kind", ("--context=kind-kind",))
