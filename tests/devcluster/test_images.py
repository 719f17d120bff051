"""Images come from ordinary Dockerfiles, rebuild only changed layers, and contain nothing of this machine."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import images
from devcluster.errors import DevClusterError
from devcluster.node import check_machine

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="building images needs root")
TAG = "devcluster-image-test:dev"


@pytest.fixture(scope="module")
def machine() -> None:
    """Install what building images needs."""
    check_machine()


@pytest.fixture
def context(tmp_path: Path, machine: None) -> Iterator[Path]:
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE_IMAGE=public.example/python\n"
        "FROM ${BASE_IMAGE}\n"
        "ARG GREETING\n"
        'RUN echo "$GREETING" > /greeting\n'
        "RUN grep -q ca-certificates /etc/pip.conf && grep -q system-certs /etc/uv/uv.toml\n"
        "COPY code /code\n"
    )
    (tmp_path / "code").write_text("one\n")
    yield tmp_path
    subprocess.run([*images.BUILDAH, "rmi", f"localhost/{TAG}"], capture_output=True, check=False)


def build(context: Path) -> str:
    return images.build(context / "Dockerfile", context, TAG, {"GREETING": "hello"}, base=images.base_image())


def read(image: str, *files: str) -> list[str]:
    """Return the content of files in the image."""
    container = subprocess.run(
        [*images.BUILDAH, "from", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        root = Path(
            subprocess.run(
                [*images.BUILDAH, "mount", container], capture_output=True, text=True, check=True
            ).stdout.strip()
        )
        return [(root / file).read_text() for file in files]
    finally:
        subprocess.run([*images.BUILDAH, "rm", container], capture_output=True, check=True)


def layers(image: str) -> list[str]:
    output = subprocess.run(
        [*images.BUILDAH, "inspect", "--type=image", image], capture_output=True, text=True, check=True
    ).stdout
    layers: list[str] = json.loads(output)["OCIv1"]["rootfs"]["diff_ids"]
    return layers


@pytest.mark.node
@needs_root
def test_a_change_of_the_last_layer_keeps_the_others(context: Path) -> None:
    before = layers(build(context))
    assert layers(build(context)) == before
    (context / "code").write_text("two\n")
    after = layers(build(context))
    assert after[:-1] == before[:-1]
    assert after[-1] != before[-1]
    assert read(f"localhost/{TAG}", "code", "greeting") == ["two\n", "hello\n"]


@pytest.mark.node
@needs_root
def test_what_the_build_borrows_of_this_machine_is_not_in_the_image(context: Path) -> None:
    image = build(context)
    assert read(image, "etc/pip.conf", "etc/uv/uv.toml") == ["", ""]
    output = subprocess.run(
        [*images.BUILDAH, "inspect", "--type=image", image], capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(output)["OCIv1"]["config"]["Env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    ]


@pytest.mark.node
@needs_root
def test_a_failed_build_shows_the_end_of_its_output(context: Path) -> None:
    (context / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nRUN echo the reason >&2 && false\n")
    with pytest.raises(DevClusterError, match=r"(?s)buildah .* failed with exit status 1:.*the reason"):
        build(context)


@pytest.mark.node
@needs_root
def test_an_image_that_is_not_there_is_named() -> None:
    with pytest.raises(DevClusterError, match="there is no local image 'localhost/absent:dev'"):
        images.push("localhost/absent:dev", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("image", "path"),
    [
        ("localhost/trainer:dev", "trainer:dev"),
        ("localhost:5000/a/b", "a/b:latest"),
        ("ghcr.io/org/name:1.0", "org/name:1.0"),
        ("plain", "plain:latest"),
        ("org/name:2", "org/name:2"),
    ],
)
def test_an_image_keeps_its_path_and_tag_in_the_registry(image: str, path: str) -> None:
    assert images.repository(image) == path
