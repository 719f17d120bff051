"""Rules of the repository: known files at the root, one version, links that lead somewhere."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
ROOT_ENTRIES = {
    ".ci", ".dockerignore", ".editorconfig", ".gitignore", ".pre-commit-config.yaml",
    "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "LICENSE", "Makefile", "README.md", "RELEASE.md", "SECURITY.md",
    "bench", "charts", "crds", "devcluster", "docs", "examples", "operator", "pyproject.toml", "tests", "tools",
    "trainer_image", "uv.lock",
}  # fmt: skip
"""Everything at the top level. A new entry needs a reason: most files belong into one of these folders."""
SOURCE_ROOTS = (".", "operator", "trainer_image")
PACKAGES = ("bench/", "charts/", "crds/", "devcluster/", "docs/", "finetune_", "operator/", "tests/", "tools/")
"""How a path in the development pages starts, relative to one of the source roots."""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def committed_files(pattern: str = "*") -> list[Path]:
    """List the files that git tracks, by a glob of git's."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).exists()]


def test_the_root_has_only_known_files() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in committed_files()} <= ROOT_ENTRIES


def test_the_chart_has_the_version_of_the_project() -> None:
    chart = yaml.safe_load((ROOT / "charts/finetune-operator/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_the_lock_file_has_the_version_of_the_project() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert [package["version"] for package in packages if package["name"] == "finetune-operator"] == [VERSION]


@pytest.mark.parametrize("file", ["Dockerfile", "docs/install.md", "README.md"])
def test_no_other_file_repeats_the_version(file: str) -> None:
    assert VERSION not in (ROOT / file).read_text()


@pytest.mark.parametrize("page", committed_files("*.md"), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_their_anchors_exist(page: Path) -> None:
    broken = []
    for target, anchor in relative_links(page.read_text()):
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in anchors_of(file.read_text())):
            broken.append(f"{target}#{anchor}" if anchor else target)
    assert broken == []


def relative_links(text: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the anchor of each relative link of a page; links in code blocks do not count."""
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors_of(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_package_map_has_every_package_and_room() -> None:
    package_map = (ROOT / "docs/development.md").read_text().partition("## Package map")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w./-]+?)/?`", package_map))
    packages = {f"operator/{entry.name}" for entry in (ROOT / "operator").iterdir() if (entry / "__init__.py").exists()}
    rooms = {
        f"{package.name}/{entry.name}"
        for package in (ROOT / "operator/finetune_operator", ROOT / "trainer_image/finetune_trainer")
        for entry in package.iterdir()
        if (entry / "__init__.py").exists() or (entry.suffix == ".py" and entry.name != "__init__.py")
    }
    reconcilers = {"finetune_operator/reconcile"}  # the map has each of the two
    assert sorted((packages | rooms) - reconcilers - named) == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/development.md"])
def test_named_files_exist(page: str) -> None:
    paths = re.findall(r"`([\w.-]+/[\w./-]*)`", (ROOT / page).read_text())
    files = [path for path in paths if path.startswith(PACKAGES) or path.endswith(".py")]
    assert [path for path in files if not any((ROOT / root / path).exists() for root in SOURCE_ROOTS)] == []
