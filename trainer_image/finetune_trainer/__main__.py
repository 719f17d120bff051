"""Run ``python -m finetune_trainer preflight|train|merge|clean-up``.

Only this module reads the environment. Heavy imports come after the configuration is validated.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from finetune_trainer.runtime import configuration, logs
from finetune_trainer.runtime.libraries import hide_package, library_environment

if TYPE_CHECKING:
    from finetune_trainer.runtime.settings import Settings

ENVIRONMENT = """\
environment:
  FINETUNE_JOB              the FineTuneJob (metadata and spec) as JSON; required
  FINETUNE_ATTEMPT          number of the Job of this pod, from 1
  FINETUNE_ADJUSTMENTS      settings that replace the user's after attempts that ran out of memory, as JSON
  FINETUNE_MODEL_REVISION   commit of an hf:// model, as the preflight resolved it
  FINETUNE_CACHED_MODEL     the model in the cache of spec.model.cache, as the preflight left it, as JSON
  FINETUNE_TRAINING_CHOICE  values that an earlier attempt chose for unset fields of spec.training, as JSON
  FINETUNE_SIMULATED_GPUS   true: the cluster only pretends to have GPUs, so that the job trains on the CPU
  FINETUNE_REPORT_URL       where progress is reported; unset: nowhere
  FINETUNE_TOKEN_FILE       file with the pod's token for these reports
  FINETUNE_MOUNTS           directory with secrets/, configmaps/, claims/ and model-cache/ (/etc/finetune)
  FINETUNE_SCRATCH          directory for downloads and checkpoints (/tmp/finetune)
  FINETUNE_TERMINATION_LOG  file for the result as JSON (/dev/termination-log)
  HF_ENDPOINT               address of the model hub
"""


def main(arguments: list[str], environment: Mapping[str, str]) -> int:
    """Run a subcommand and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_trainer",
        description="Check the FineTuneJob in the environment, train it, merge its adapter, or delete what it wrote.",
        epilog=ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=["preflight", "train", "merge", "clean-up"],
        help="preflight: check everything without a GPU; train: make the adapter; merge: merge the finished adapter "
        "into its base; clean-up: delete what the job wrote",
    )
    command = parser.parse_args(arguments).command
    logs.configure()
    job = configuration.read_job(environment)
    if isinstance(job, list):
        return configuration.write_problems(command, job, configuration.termination_log(environment))
    processes = job.spec.resources.processes if command == "train" else 1
    os.environ.update(library_environment(environment, processes))
    if job.spec.tracking.wandb is None:
        hide_package("wandb")
    from finetune_trainer.runtime.settings import read_settings

    return _command(command)(read_settings(job, environment))


def _command(name: str) -> "Callable[[Settings], int]":
    if name == "preflight":
        from finetune_trainer.preflight import main as preflight

        return preflight
    if name == "clean-up":
        from finetune_trainer.clean_up import main as clean_up

        return clean_up
    if name == "merge":
        from finetune_trainer.merge import main as merge

        return merge
    from finetune_trainer.attempt import main as train

    return train


if __name__ == "__main__":
    code = main(sys.argv[1:], os.environ)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # do not wait for a thread that waits for an unavailable service
    os._exit(code)
