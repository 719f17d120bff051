"""Run Python with the packages of the preflight's image only, taken from this environment."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def list_packages() -> set[str]:
    """Return the names of the packages that the Dockerfile installs into the operator's image."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    match = re.search(r"\$\{export\} (.*?) --output-file /lock/operator\.txt", text)
    assert match, "the Dockerfile writes the list of packages"
    command = ["uv", "export", "--quiet", "--offline", "--frozen", "--no-dev", "--no-emit-project", "--no-hashes"]
    completed = subprocess.run(
        [*command, "--no-header", "--no-annotate", *shlex.split(match[1])],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {_normalize(line.partition("==")[0]) for line in completed.stdout.splitlines()}


def make_site(directory: Path) -> Path:
    """Fill a directory with links to the image's packages, as they are installed here."""
    packages = list_packages()
    for distribution in importlib.metadata.distributions():
        if _normalize(distribution.name) in packages:
            for file in distribution.files or []:
                if ".." not in file.parts:
                    _link(Path(str(distribution.locate_file(""))), directory, file.parts)
    return directory


def run_in_image(
    site: Path, *arguments: str, environment: dict[str, str] | None = None, text: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments, with the image's packages and our own code."""
    paths = (site, ROOT / "operator", ROOT / "trainer_image")
    variables = {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PATH": os.environ["PATH"]} | (environment or {})
    program = [sys.executable, "-S", *arguments]
    return subprocess.run(program, env=variables, input=text, capture_output=True, text=True, check=False)


def run_preflight(site: Path, job: str, mounts: Path, directory: Path, **variables: str) -> tuple[int, bytes, str]:
    """Run the preflight of a job (its JSON) as its pod does; return exit code, termination message and log.

    ``directory`` holds its scratch space; ``variables`` are further ones of the pod.
    """
    termination_log = directory / "termination-log"
    environment = {
        "FINETUNE_JOB": job,
        "FINETUNE_MOUNTS": str(mounts),
        "FINETUNE_TERMINATION_LOG": str(termination_log),
        "FINETUNE_SCRATCH": str(directory / "scratch"),
        "HOME": str(directory),
        **variables,
    }
    completed = run_in_image(site, "-m", "finetune_trainer", "preflight", environment=environment)
    log = completed.stdout + completed.stderr
    assert termination_log.is_file(), log
    return completed.returncode, termination_log.read_bytes(), log


def _link(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    """Link the outermost directory of a file that is one package's own."""
    first, target = source / parts[0], target / parts[0]
    if target.is_symlink():
        return
    if len(parts) > 1 and parts[0] == "google":  # protobuf and others share it
        target.mkdir(parents=True, exist_ok=True)
        _link(first, target, parts[1:])
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(first)


def _normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
