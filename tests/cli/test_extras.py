"""The command line needs no more than its extra installs."""

import os
import subprocess
import sys
from pathlib import Path

import finetune_cli
from tools.testing.extras import only_extras


def test_each_module_imports_with_the_packages_of_the_extra_cli(tmp_path: Path) -> None:
    modules = sorted(f"finetune_cli.{file.stem}" for file in Path(finetune_cli.__path__[0]).glob("[!_]*.py"))
    completed = subprocess.run(
        [sys.executable, "-c", "\n".join(f"import {module}" for module in modules)],
        env=os.environ | only_extras(["cli"], tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
