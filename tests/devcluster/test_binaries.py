"""Programs come from this machine if their version suits, else from a build that happens once and is complete."""

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster import binaries
from devcluster.errors import DevClusterError

REPOSITORY = Path(binaries.__file__).parent.parent


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FINETUNE_CACHE_DIR", str(tmp_path / "cache"))
    binaries.existing.cache_clear()
    yield tmp_path / "cache"
    binaries.existing.cache_clear()


def fake(directory: Path, name: str, prints: str) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / name
    file.write_text(f"#!/bin/sh\necho '{prints}'\n")
    file.chmod(0o755)
    return file


def test_kubebuilder_assets_come_before_path(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = fake(tmp_path / "assets", "etcd", "etcd Version: 3.6.1")
    fake(tmp_path / "bin", "etcd", "etcd Version: 3.6.2")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(asset.parent))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    assert binaries.program("etcd") == asset


def test_a_program_on_path_is_used_when_its_version_suits(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = fake(tmp_path / "bin", "kube-apiserver", "Kubernetes v1.35.9")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    assert binaries.program("kube-apiserver") == on_path


def test_a_program_of_another_version_is_not_used(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", "kube-apiserver", "Kubernetes v1.29.0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    program = (
        next(build for build in binaries.BUILDS if "kube-apiserver" in build.programs).directory() / "kube-apiserver"
    )
    program.parent.mkdir(parents=True)
    program.touch()
    assert binaries.program("kube-apiserver") == program


def test_two_callers_at_once_build_once(cache: Path) -> None:
    code = "from devcluster.binaries import built; print(built('pause'))"
    callers = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [caller.communicate() for caller in callers]
    assert [caller.returncode for caller in callers] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert Path(outputs[0][0].strip()).is_file()
    assert sum(shown.count("building pause: done") for _, shown in outputs) == 1


def test_what_a_killed_build_left_is_not_taken_for_a_build(cache: Path) -> None:
    half = cache / "bin" / "partial-1"
    half.mkdir(parents=True)
    (half / "pause").write_text("half")
    assert binaries.built("pause").stat().st_size > 500_000
    assert not half.exists()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a Go module of two programs, in place of ours."""
    directory = tmp_path / "go"
    for name in ("one", "two"):
        (directory / name).mkdir(parents=True)
        (directory / name / "main.go").write_text('package main\n\nfunc main() { println("here") }\n')
    (directory / "go.mod").write_text("module module\n\ngo 1.26\n")
    (directory / "go.sum").touch()
    builds = (binaries.Build("one", "./one", ("one", "uno")), binaries.Build("two", "./two", ("two",)))
    monkeypatch.setattr(binaries, "GO_MODULE", directory)
    monkeypatch.setattr(binaries, "BUILDS", builds)
    return directory


def test_one_run_of_go_builds_all_that_is_missing(cache: Path, module: Path, capfd: pytest.CaptureFixture[str]) -> None:
    binaries.ensure(["one", "two"])
    assert capfd.readouterr().err.count("building one, two: done") == 1
    for name in ("one", "uno", "two"):
        version = subprocess.run([binaries.program(name)], capture_output=True, text=True, check=True)
        assert version.stderr == "here\n"
    assert capfd.readouterr().err == ""


def put_module(proxy: Path, path: str, files: dict[str, str]) -> None:
    """Put version 1.0.0 of a Go module into a module proxy of files."""
    directory = proxy / path / "@v"
    directory.mkdir(parents=True)
    (directory / "v1.0.0.info").write_text('{"Version": "v1.0.0"}')
    (directory / "v1.0.0.mod").write_text(files["go.mod"])
    with zipfile.ZipFile(directory / "v1.0.0.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{path}@v1.0.0/{name}", content)


def test_a_module_that_replaces_another_by_a_directory_of_its_repository_is_built_from_its_archive(
    cache: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = 'package main\n\nimport "example.com/app/api"\n\nfunc main() { println(api.Word) }\n'
    api_path = "example.com/app/api"
    mod = f"module example.com/app\n\ngo 1.26\n\nrequire {api_path} v1.0.0\n\nreplace {api_path} => ./api\n"
    proxy = tmp_path / "proxy"
    put_module(proxy, "example.com/app", {"go.mod": mod, "go.sum": "", "go.work": "go 1.26\nuse .\n", "main.go": main})
    api = {"go.mod": f"module {api_path}\n\ngo 1.26\n", "api.go": 'package api\n\nconst Word = "here"\n'}
    put_module(proxy, api_path, api)
    for name, value in {
        "GOPROXY": proxy.as_uri(),
        "GOSUMDB": "off",
        "GOMODCACHE": str(tmp_path / "modules"),
        "GOFLAGS": "-modcacherw",
    }.items():
        monkeypatch.setenv(name, value)
    build = binaries.Build("app", ".", ("app", "other-name"), "example.com/app@v1.0.0")
    monkeypatch.setattr(binaries, "BUILDS", (build,))
    ran = subprocess.run([binaries.built("other-name")], capture_output=True, text=True, check=True)
    assert ran.stderr == "here\n"


def test_a_failed_build_says_why_where_its_log_is_and_what_to_do(cache: Path, module: Path) -> None:
    (module / "two" / "main.go").write_text("package main\n\nfunc main() { undefinedName() }\n")
    with pytest.raises(DevClusterError, match=r"(?s)undefined: undefinedName.*build\.log.*run the same command again"):
        binaries.program("two")
    assert not [entry for entry in (cache / "bin").iterdir() if entry.is_dir()]


def test_a_changed_source_is_another_build_of_that_program_alone(module: Path) -> None:
    before = [build.directory() for build in binaries.BUILDS]
    (module / "one" / "main.go").write_text("package main // changed")
    assert [build.directory() == old for build, old in zip(binaries.BUILDS, before, strict=True)] == [False, True]
    (module / "go.sum").write_text("changed")
    assert [build.directory() == old for build, old in zip(binaries.BUILDS, before, strict=True)] == [False, False]


def test_an_unknown_program_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DevClusterError, match=r"no program named 'kubelte': the dev cluster knows .*kubelet"):
        binaries.program("kubelte")
