"""Build container images from the users' Dockerfile with buildah, and push them to a node's registry."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from devcluster import commands
from devcluster.binaries import program
from devcluster.cache import cached
from devcluster.errors import DevClusterError
from devcluster.paths import cache_dir
from devcluster.progress import step

# vfs, the other storage driver, copies the file system for each layer; chroot isolation needs no cgroups.
BUILDAH = ("buildah", "--storage-driver", "overlay")
DEBIAN_RELEASE = "bookworm"
DEBIAN_MIRROR = "http://deb.debian.org/debian"
BASE_PACKAGES = ("python3", "python3-venv", "ca-certificates")
BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def base_image() -> str:
    """Return the name of a local Debian image with Python that replaces the public base image; make it once."""
    recipe = f"{DEBIAN_RELEASE} {DEBIAN_MIRROR} {' '.join(BASE_PACKAGES)}"
    name = f"localhost/finetune-base:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if exists(name):
        return name
    root = cached("debian", recipe, "bootstrapping Debian", "about 1 min", _bootstrap)
    with step("making the base image"):
        _build_scratch_image(name, root, "COPY . /", f"ENV PATH={BASE_PATH}", 'CMD ["bash"]')
    shutil.rmtree(root)
    return name


def build(
    dockerfile: Path,
    context: Path,
    tag: str,
    build_args: Mapping[str, str] | None = None,
    base: str | None = None,
    target: str | None = None,
) -> str:
    """Build an image and return its local name, `localhost/<tag>`; unchanged layers are not built again.

    During the build, and not in the image, the host's CA certificates and uv's cache are mounted.

    Args:
        dockerfile: The file to build from.
        context: The directory that COPY reads.
        tag: The name and tag of the image.
        build_args: Values of the file's ARGs.
        base: The image for the build argument BASE_IMAGE.
        target: The stage to build; by default the last one.

    Raises:
        DevClusterError: The build failed; the message has the end of its output.
    """
    name = f"localhost/{tag}"
    arguments = dict(build_args or {}) | ({"BASE_IMAGE": base} if base else {})
    with tempfile.TemporaryDirectory() as scratch, step(f"building image {tag}"):
        commands.run(
            [
                *BUILDAH,
                "build",
                "--isolation=chroot",
                "--layers",
                "--pull-never" if base else "--pull",
                f"--file={dockerfile}",
                f"--tag={name}",
                *([f"--target={target}"] if target else []),
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
            _build_scratch_image(
                name, Path(context), "COPY versitygw /versitygw", "USER 65532:65532", 'ENTRYPOINT ["/versitygw"]'
            )
    return name


def push(image: str, registry: str) -> str:
    """Push a local image to a registry and return its reference by digest, for use in YAML.

    Args:
        image: The local name.
        registry: host:port of a registry that speaks plain HTTP.

    Raises:
        DevClusterError: There is no such image, or the registry refuses it.
    """
    if not exists(image):
        raise DevClusterError(f"there is no local image {image!r}; `buildah images` lists those that there are")
    target = f"{registry}/{repository(image)}"
    with tempfile.TemporaryDirectory() as scratch, step(f"pushing image {image}"):
        digest = Path(scratch) / "digest"
        commands.run(
            [
                *BUILDAH,
                "push",
                "--tls-verify=false",
                "--compression-format=zstd",
                "--compression-level=1",  # the trainer image has 7 GB, and the registry is on this machine
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
    """Return an image's path and tag without the registry at its beginning: localhost/a/b:c is a/b:c."""
    registry, separator, rest = image.partition("/")
    path = rest if separator and (registry == "localhost" or "." in registry or ":" in registry) else image
    return path if ":" in path.rsplit("/", 1)[-1] else f"{path}:latest"


def _build_scratch_image(name: str, context: Path, *instructions: str) -> None:
    """Build an image with one layer from the files of a directory; equal files give an equal image."""
    with tempfile.TemporaryDirectory() as scratch:
        dockerfile = Path(scratch) / "Dockerfile"
        dockerfile.write_text("\n".join(("FROM scratch", *instructions, "")))
        options = ("--quiet", "--isolation=chroot", "--timestamp=0", f"--file={dockerfile}", f"--tag={name}")
        commands.run([*BUILDAH, "build", *options, str(context)])


def _bootstrap(root: Path) -> None:
    commands.run(
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
    """Return the volumes of a build: this machine's CA certificates, also for pip and uv, and uv's cache."""
    pip, uv = scratch / "pip.conf", scratch / "uv.toml"
    pip.write_text(f"[global]\ncert = {BUNDLE}\ndisable-pip-version-check = true\n")
    uv.write_text('system-certs = true\nlink-mode = "copy"\n')
    uv_cache = cache_dir() / "uv"
    if shutil.which("uv"):
        uv_cache = Path(commands.run(["uv", "cache", "dir"]).strip())
    uv_cache.mkdir(parents=True, exist_ok=True)
    return [
        f"{pip}:/etc/pip.conf:ro",
        f"{uv}:/etc/uv/uv.toml:ro",
        f"{uv_cache}:/root/.cache/uv:rw",
        *([f"{BUNDLE}:{BUNDLE}:ro"] if BUNDLE.exists() else []),
    ]
