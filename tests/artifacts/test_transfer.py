"""Upload and download over a real S3 service that works, fails, or returns wrong data."""

import http.server
import itertools
import os
import resource
import shutil
import signal
import threading
from pathlib import Path

import pytest

from finetune_api.base import S3Location
from finetune_api.manifest import AdapterManifest, FileEntry, Origin
from finetune_api.reasons import Reason
from finetune_api.uris import S3Uri, StorageUri
from finetune_artifacts import s3_transfer
from finetune_artifacts.digests import checksum_of, digest_of
from finetune_artifacts.download import download_adapter, download_file, download_files
from finetune_artifacts.errors import ArtifactError, Fault, Purpose
from finetune_artifacts.models import download_model
from finetune_artifacts.objects import open_object, read_object
from finetune_artifacts.s3 import open_s3
from finetune_artifacts.upload import manifest_bytes, put_manifest, upload_directory
from tests.artifacts.conftest import Server, put
from tools.testing.faulty_proxy import ProxyFault, running_faulty_proxy
from tools.testing.s3_server import S3Server, write_secret


def make_adapter(directory: Path, size: int = 3000) -> Path:
    """Write a directory as the trainer saves it."""
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(os.urandom(size))
    (directory / "empty.txt").write_bytes(b"")
    return directory


def manifest_of(files: list[FileEntry], base: str = "org/base") -> AdapterManifest:
    origin = Origin(namespace="team", name="job", uid="1")
    return AdapterManifest(
        job=origin, created_at="2026-01-01T00:00:00Z", base_model=base, peft_type="LORA", files=files
    )


def publish(server: Server, uri: StorageUri, directory: Path) -> str:
    """Upload an adapter, and return its digest."""
    store = server.store()
    return put_manifest(store, uri, manifest_of(upload_directory(store, uri, directory)))


def stored(server: Server, uri: StorageUri, name: str) -> Path:
    """Return where the server keeps an object."""
    return server.buckets / uri.root / uri.key / name


def damage(path: Path, content: bytes) -> None:
    """Replace an object's bytes behind the service's back; its recorded checksum stays."""
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    path.write_bytes(content)
    for name, value in attributes.items():
        os.setxattr(path, name, value)


def test_an_adapter_arrives_as_it_was_sent(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    source = make_adapter(tmp_path / "source", size=40 * 1024 * 1024)
    digest = publish(server, uri, source)
    target = tmp_path / "adapters" / "name" / digest
    manifest = download_adapter(server.store(Purpose.ADAPTER), uri, digest, target)
    assert sorted(entry.path for entry in manifest.files) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "empty.txt",
    ]
    for entry in manifest.files:
        assert (target / entry.path).read_bytes() == (source / entry.path).read_bytes()
    assert digest_of((target / "manifest.json").read_bytes()) == digest
    assert [entry.name for entry in target.parent.iterdir()] == [digest], "no temporary directory may stay"


def test_an_adapter_that_is_there_is_not_fetched_again(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    store = server.store(Purpose.ADAPTER)
    download_adapter(store, uri, digest, tmp_path / "target")
    stored(server, uri, "adapter_config.json").unlink()
    download_adapter(store, uri, digest, tmp_path / "target")


def test_the_very_same_manifest_may_be_written_twice_but_no_other(server: Server, uri: StorageUri) -> None:
    store = server.store()
    assert put_manifest(store, uri, manifest_of([])) == put_manifest(store, uri, manifest_of([]))
    with pytest.raises(ArtifactError) as caught:
        put_manifest(store, uri, manifest_of([], base="org/other"))
    assert caught.value.reason is Reason.OUTPUT_EXISTS


def test_nothing_below_a_manifest_is_overwritten(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    with pytest.raises(ArtifactError) as caught:
        upload_directory(server.store(), uri, make_adapter(tmp_path / "other"))
    assert caught.value.reason is Reason.OUTPUT_EXISTS
    download_adapter(server.store(), uri, digest, tmp_path / "target")


def refused(server: Server, uri: StorageUri, digest: str, target: Path) -> ArtifactError:
    """Return the refusal of a download, which must leave nothing behind."""
    with pytest.raises(ArtifactError) as caught:
        download_adapter(server.store(Purpose.ADAPTER, patience_seconds=1), uri, digest, target)
    assert not target.exists()
    assert not [entry for entry in target.parent.iterdir() if entry.name.endswith(".partial")]
    return caught.value


def test_another_digest_than_the_expected_is_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    wrong = f"sha256:{'0' * 64}"
    error = refused(server, uri, wrong, tmp_path / "target")
    assert error.reason is Reason.DIGEST_MISMATCH
    assert digest in error.message
    assert wrong in error.message
    assert server.endpoint in error.message


def test_a_flipped_bit_is_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    weights = stored(server, uri, "adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    damage(weights, bytes(content))
    error = refused(server, uri, digest, tmp_path / "target")
    assert error.reason is Reason.DIGEST_MISMATCH
    assert "adapter_model.safetensors" in error.message


def test_a_truncated_object_is_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    weights = stored(server, uri, "adapter_model.safetensors")
    damage(weights, weights.read_bytes()[:-1])
    error = refused(server, uri, digest, tmp_path / "target")
    assert error.reason is Reason.DIGEST_MISMATCH
    assert "has 2999 bytes, the manifest says 3000" in error.message


def test_a_missing_object_is_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    stored(server, uri, "adapter_config.json").unlink()
    assert refused(server, uri, digest, tmp_path / "target").reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("path", ["../outside.json", "inside/../../outside.json", "./manifest.json", "manifest.json"])
def test_a_manifest_that_leads_out_of_its_directory_is_refused(
    server: Server, uri: StorageUri, tmp_path: Path, path: str
) -> None:
    store = server.store()
    digest = put_manifest(store, uri, manifest_of([FileEntry(path=path, size_bytes=1, sha256=digest_of(b"x"))]))
    error = refused(server, uri, digest, tmp_path / "target")
    assert error.reason is Reason.ADAPTER_UNSUPPORTED
    assert not (tmp_path / "outside.json").exists()


def test_files_that_lead_out_of_the_directory_are_refused_whoever_names_them(
    server: Server, uri: StorageUri, tmp_path: Path
) -> None:
    put(server, uri.child("inside"), b"x")
    entry = FileEntry(path="../outside.json", size_bytes=1, sha256=digest_of(b"x"))
    with pytest.raises(ArtifactError, match="leads out of the directory"):
        download_files(server.store(), uri, [entry], tmp_path / "target")
    assert not (tmp_path / "outside.json").exists()


def test_pickled_weights_are_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    source = make_adapter(tmp_path / "source")
    (source / "adapter_model.bin").write_bytes(b"\x80\x04")
    error = refused(server, uri, publish(server, uri, source), tmp_path / "target")
    assert error.reason is Reason.ADAPTER_UNSUPPORTED
    assert "adapter_model.bin" in error.message


@pytest.mark.parametrize("content", [b"{}", b"not json", b'{"kind": "Checkpoint"}', manifest_bytes(manifest_of([]))])
def test_a_file_that_is_not_a_manifest_is_refused(
    server: Server, uri: StorageUri, tmp_path: Path, content: bytes
) -> None:
    put(server, uri.child("manifest.json"), content)
    assert refused(server, uri, digest_of(content), tmp_path / "target").reason is Reason.DIGEST_MISMATCH


def test_a_manifest_of_very_many_files_is_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    entries = [FileEntry(path=str(number), size_bytes=1, sha256=digest_of(b"x")) for number in range(10_001)]
    content = manifest_bytes(manifest_of(entries))
    put(server, uri.child("manifest.json"), content)
    assert "lists 10001 files" in refused(server, uri, digest_of(content), tmp_path / "target").message


def test_a_manifest_that_never_ends_is_refused(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    content = b" " * (16 * 1024 * 1024 + 1)
    put(server, uri.child("manifest.json"), content)
    assert "is larger than" in refused(server, uri, digest_of(content), tmp_path / "target").message


def test_what_the_disk_has_no_room_for_is_not_begun(
    server: Server, uri: StorageUri, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("finetune_artifacts.download.shutil.disk_usage", lambda path: usage._replace(free=3001))
    error = refused(server, uri, digest, tmp_path / "target")
    assert (error.reason, "left: free some" in error.message) == (Reason.DOWNLOAD_FAILED, True)


def test_a_disk_that_is_full_leaves_nothing_behind(server: Server, uri: StorageUri, tmp_path: Path) -> None:
    digest = publish(server, uri, make_adapter(tmp_path / "source", size=5_000_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            download_adapter(server.store(), uri, digest, tmp_path / "target")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert {entry.name for entry in tmp_path.iterdir()} - {"output"} == {"source"}


def test_a_server_that_is_unavailable_during_an_upload_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_adapter(tmp_path / "source", size=150 * 1024 * 1024)
    with S3Server(tmp_path / "own-s3") as server:
        uri = S3Uri(server.create_bucket("mine"), "job/adapter")
        parts = itertools.count(1)
        back = threading.Timer(4, server.start)

        def checksum(content: bytes) -> str:
            if next(parts) == 5:
                server.stop()
                back.start()
            return checksum_of(content)

        monkeypatch.setattr(s3_transfer, "checksum_of", checksum)
        digest = publish(server, uri, source)
        back.join()
        assert next(parts) > 11, "the parts before and after the break were sent"
        download_adapter(server.store(), uri, digest, tmp_path / "target")
    assert (tmp_path / "target" / "adapter_model.safetensors").read_bytes() == (
        source / "adapter_model.safetensors"
    ).read_bytes()


def test_a_server_that_stays_unavailable_is_named(tmp_path: Path) -> None:
    with S3Server(tmp_path / "own-s3") as server:
        server.create_bucket("mine")
        server.stop()
        with pytest.raises(ArtifactError) as caught:
            server.store(patience_seconds=1).check_root(S3Uri("mine", ""))
        server.start()
    assert caught.value.fault is Fault.UNREACHABLE
    assert caught.value.reason is Reason.UPLOAD_FAILED
    assert server.endpoint in caught.value.message


@pytest.mark.parametrize(("status", "expected"), [(200, "is not an S3 service"), (404, "bucket 'mine' does not exist")])
def test_what_answers_but_is_no_s3_service_is_named(tmp_path: Path, status: int, expected: str) -> None:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html><body>It works!</body>")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class names it so
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        location = S3Location(endpoint=f"http://127.0.0.1:{server.server_port}")
        secret = write_secret(tmp_path / "secret", "a", "b")
        with pytest.raises(ArtifactError) as caught:
            open_s3(location, secret, Purpose.OUTPUT, 1).check_root(S3Uri("mine", ""))
        server.shutdown()
    assert expected in caught.value.message
    assert f"http://127.0.0.1:{server.server_port}" in caught.value.message


def test_the_same_fault_has_the_reason_that_fits_the_purpose(s3_server: S3Server, tmp_path: Path) -> None:
    secret = write_secret(tmp_path / "secret", "test-access", "wrong-key")
    expected = {
        Purpose.OUTPUT: Reason.OUTPUT_ACCESS_DENIED,
        Purpose.DATASET: Reason.DATASET_ACCESS_DENIED,
        Purpose.MODEL: Reason.MODEL_ACCESS_DENIED,
        Purpose.ADAPTER: Reason.ADAPTER_ACCESS_DENIED,
    }
    for purpose, reason in expected.items():
        with pytest.raises(ArtifactError) as caught:
            open_s3(s3_server.location, secret, purpose, 1).check_root(S3Uri("mine", ""))
        assert caught.value.reason is reason
        assert "wrong-key" not in str(caught.value)


def test_the_write_probe_leaves_nothing_behind(server: Server, uri: StorageUri) -> None:
    assert server.store().probe_write(uri) is True
    assert server.store().list_objects(S3Uri(uri.root, "")) == []


def test_a_probe_without_the_right_to_write_is_refused(s3_server: S3Server, uri: StorageUri, tmp_path: Path) -> None:
    secret = write_secret(tmp_path / "secret", "test-access", "wrong-key")
    with pytest.raises(ArtifactError) as caught:
        open_s3(s3_server.location, secret, Purpose.OUTPUT, 1).probe_write(uri)
    assert caught.value.fault is Fault.DENIED


def test_a_model_directory_without_a_manifest_is_fetched_with_progress(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    client = s3_server.store().client
    weights = os.urandom(70 * 1024 * 1024)
    files = {
        "config.json": b"{}",
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"\x80",
        "original/x.json": b"{}",
    }
    for name, content in files.items():
        client.put_object(Bucket=bucket, Key=f"models/base/{name}", Body=content)
    progress: list[tuple[int, int]] = []
    target = tmp_path / "model"
    download_model(
        s3_server.store(Purpose.MODEL),
        S3Uri(bucket, "models/base"),
        target,
        lambda received, total: progress.append((received, total)),
    )
    assert sorted(entry.name for entry in target.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (target / "model.safetensors").read_bytes() == weights
    assert len(progress) > 2
    assert progress[-1][0] == progress[-1][1] == len(weights) + 4


def test_a_file_and_its_lines(s3_server: S3Server, bucket: str, tmp_path: Path) -> None:
    store = s3_server.store(Purpose.DATASET)
    lines = [b"x" * size for size in (0, 1, 70, 700, 5)]
    store.client.put_object(Bucket=bucket, Key="data.jsonl", Body=b"\n".join(lines))
    uri = S3Uri(bucket, "data.jsonl")
    info = store.head(uri)
    assert info is not None
    with open_object(store, info, block=64) as file:
        assert file.read().split(b"\n") == lines
        file.seek(-5, 2)
        assert file.read() == b"xxxxx"
    assert download_file(store, uri, tmp_path / "data.jsonl").size == 780
    assert (tmp_path / "data.jsonl").read_bytes() == b"\n".join(lines)
    assert store.head(S3Uri(bucket, "nothing")) is None
    with pytest.raises(ArtifactError) as caught:
        download_file(store, S3Uri(bucket, "nothing"), tmp_path / "nothing")
    assert caught.value.reason is Reason.DATASET_NOT_FOUND
    with pytest.raises(ArtifactError) as caught:
        download_file(store, S3Uri("no-such-bucket", "nothing"), tmp_path / "nothing")
    assert caught.value.reason is Reason.BUCKET_NOT_FOUND


def test_half_an_answer_is_asked_for_again(s3_server: S3Server, uri: StorageUri, tmp_path: Path) -> None:
    s3_server.store().client.put_object(Bucket=uri.root, Key=uri.child("manifest.json").key, Body=b"x" * 1000)
    cuts: list[ProxyFault] = ["cut", "cut"]
    with running_faulty_proxy(s3_server.port) as proxy:
        proxy.choose_fault = lambda method, _: cuts.pop() if method == "GET" and cuts else None
        store = open_s3(S3Location(endpoint=proxy.endpoint, region="us-east-1"), s3_server.secret, Purpose.OUTPUT, 10)
        assert read_object(store, uri.child("manifest.json")) == b"x" * 1000
    assert not cuts
