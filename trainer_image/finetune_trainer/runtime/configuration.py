"""Read the job from the environment and check it, before anything heavy is imported.

This file and what it imports must know neither S3 nor torch.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finetune_api.finetunejob import FineTuneJob
from finetune_api.messages import CleanUpResult, MergeResult, PreflightResult, Problem, TrainerResult
from finetune_api.reasons import EXIT_CODES, Reason
from finetune_api.validation import problems
from finetune_trainer.runtime import result
from finetune_trainer.runtime.logs import log


def read_job(environment: Mapping[str, str]) -> FineTuneJob | list[Problem]:
    """Read the FineTuneJob from the environment, or return everything that is wrong with it."""
    try:
        return FineTuneJob.of(json.loads(environment.get("FINETUNE_JOB", "")))
    except ValidationError as error:
        return problems(error)
    except ValueError as error:
        return [
            Problem(
                field="FINETUNE_JOB", message=f"the environment variable must hold the FineTuneJob as JSON: {error}"
            )
        ]


def termination_log(environment: Mapping[str, str]) -> Path:
    """Return the path for the result, which is needed even if the job cannot be read."""
    return Path(environment.get("FINETUNE_TERMINATION_LOG", "/dev/termination-log"))


def write_problems(command: str, job_problems: list[Problem], path: Path) -> int:
    """Write the problems as the result of the command, and return the exit code."""
    for problem in job_problems:
        log.error("%s: %s", problem.reason, problem)
    message = "; ".join(str(problem) for problem in job_problems)
    results: dict[str, result.PodResult] = {
        "train": TrainerResult(reason=Reason.SPEC_INVALID, message=message),
        "preflight": PreflightResult(problems=job_problems),
        "merge": MergeResult(reason=Reason.SPEC_INVALID, message=message),
        "clean-up": CleanUpResult(reason=Reason.SPEC_INVALID, message=message),
    }
    result.write(results[command], path)
    return EXIT_CODES[Reason.SPEC_INVALID]
