"""Builds container images with buildah, as a user would from the same Dockerfiles, and pushes them to a node's registry."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from devcluster.binaries import program
from devcluster.cache import cached
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step

# vfs, the other storage driver, copies the whole file system for each layer; chroot isolation needs no cgroups and no user namespaces.
BUILDAH = ("buildah", "--storage-driver", "overlay")
DEBIAN_RELEASE = "bookworm"
DEBIAN_MIRROR = "http://deb.debian.org/debian"
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def base_image() -> str:
    """Return the name of a local Debian image with Python, in place of the public base image; it is bootstrapped once."""
    recipe = f"{DEBIAN_RELEASE} {DEBIAN_MIRROR} {' '.join(BASE_PACKAGES)}"
    name = f"localhost/finetune-base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if exists(name):
        return name
    root = cached("debian", recipe, "bootstrapping Debian", "about 1 min", _bootstrap)
    with tempfile.TemporaryDirectory() as context, step("making the base image"):
        dockerfile = Path(context) / "Dockerfile"
        dockerfile.write_text(
            'FROM scratch\nCOPY . /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nCMD ["bash"]\n'
        )
        _run(
            [
                *BUILDAH,
                "build",
                "--quiet",
                "--isolation=chroot",
                "--timestamp=0",
                f"--file={dockerfile}",
                f"--tag={name}",
                str(root),
            ]
        )
    shutil.rmtree(root)
    return name


def build(
    dockerfile: Path,
    context: Path,
    tag: str,
    build_args: Mapping[str, str] | None = None,
    base: str | None = None,
) -> str:
    """Build an image and return its local name, `localhost/<tag>`; layers whose inputs did not change are not built again.

    `base` becomes the build argument BASE_IMAGE. During the build, not in the image, the host's CA certificates and uv's cache are there.
    Raises DevClusterError with the end of the build's output when it fails.
    """
    name = f"localhost/{tag}"
    arguments = dict(build_args or {}) | ({"BASE_IMAGE": base} if base else {})
    with tempfile.TemporaryDirectory() as scratch, step(f"building image {tag}"):
        _run(
            [
                *BUILDAH,
                "build",
                "--isolation=chroot",
                "--layers",
                "--pull-never" if base else "--pull",
                f"--file={dockerfile}",
                f"--tag={name}",
                *(f"--build-arg={key}={value}" for key, value in sorted(arguments.items())),
                *(f"--volume={volume}" for volume in _volumes(Path(scratch))),
                str(context),
            ]
        )
    return name


def s3_server_image() -> str:
    """Return the local name of an image that holds nothing but versitygw, an S3 server on a directory."""
    binary = program("versitygw")
    name = f"localhost/versitygw:{hashlib.sha256(binary.read_bytes()).hexdigest()[:12]}"
    if not exists(name):
        with tempfile.TemporaryDirectory() as context, step("making the S3 server's image"):
            shutil.copy(binary, Path(context) / "versitygw")
            dockerfile = Path(context) / "Dockerfile"
            dockerfile.write_text(
                'FROM scratch\nCOPY versitygw /versitygw\nUSER 65532:65532\nENTRYPOINT ["/versitygw"]\n'
            )
            _run(
                [
                    *BUILDAH,
                    "build",
                    "--quiet",
                    "--isolation=chroot",
                    "--timestamp=0",
                    f"--file={dockerfile}",
                    f"--tag={name}",
                    context,
                ]
            )
    return name


def push(image: str, registry: str) -> str:
    """Push the local `image` to `registry` (host:port, plain HTTP); return the reference, by digest, to use in YAML.

    Raises DevClusterError when there is no such image or the registry refuses it.
    """
    if not exists(image):
        raise DevClusterError(f"there is no local image {image!r}; `buildah images` lists those that there are")
    target = f"{registry}/{repository(image)}"
    with tempfile.TemporaryDirectory() as scratch, step(f"pushing image {image}"):
        digest = Path(scratch) / "digest"
        _run(
            [
                *BUILDAH,
                "push",
                "--tls-verify=false",
                "--compression-format=zstd",
                f"--digestfile={digest}",
                image,
                f"docker://{target}",
            ]
        )
        return f"{target.rsplit(':', 1)[0]}@{digest.read_text().strip()}"


def exists(image: str) -> bool:
    """Return whether the local storage has the image."""
    return (
        subprocess.run([*BUILDAH, "inspect", "--type=image", image], capture_output=True, check=False).returncode == 0
    )


def repository(image: str) -> str:
    """Return an image's path and tag without the registry that its name begins with: localhost/a/b:c is a/b:c."""
    first, separator, rest = image.partition("/")
    path = rest if separator and (first == "localhost" or "." in first or ":" in first) else image
    return path if ":" in path.rsplit("/", 1)[-1] else f"{path}:latest"


def _bootstrap(root: Path) -> None:
    _run(
        [
            "debootstrap",
            "--variant=minbase",
            f"--include={','.join(BASE_PACKAGES)}",
            DEBIAN_RELEASE,
            str(root),
            DEBIAN_MIRROR,
        ]
    )
    for litter in ("var/cache/apt/archives", "var/lib/apt/lists", "var/log"):
        for entry in (root / litter).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _volumes(scratch: Path) -> list[str]:
    """Return what the build's commands see of this machine: its CA certificates, set for pip and uv, and uv's cache."""
    pip, uv = scratch / "pip.conf", scratch / "uv.toml"
    pip.write_text(f"[global]\ncert = {BUNDLE}\ndisable-pip-version-check = true\n")
    uv.write_text('system-certs = true\nlink-mode = "copy"\n')
    uv_cache = cache_dir() / "uv"
    if shutil.which("uv"):
        uv_cache = Path(_run(["uv", "cache", "dir"]).strip())
    uv_cache.mkdir(parents=True, exist_ok=True)
    return [
        f"{pip}:/etc/pip.conf:ro",
        f"{uv}:/etc/uv/uv.toml:ro",
        f"{uv_cache}:/root/.cache/uv:rw",
        *([f"{BUNDLE}:{BUNDLE}:ro"] if BUNDLE.exists() else []),
    ]


def _run(command: Sequence[str]) -> str:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        tail = "\n".join((finished.stdout + finished.stderr).splitlines()[-25:])
        raise DevClusterError(f"`{' '.join(command)}` failed:\n{tail}")
    return finished.stdout
