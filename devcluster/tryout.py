"""Train the demo's example without cluster or root (`make try`), and compare the base and the adapter.

A later run continues an interrupted training from its checkpoint, and only shows a finished one.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

from devcluster import corpus, model
from devcluster.errors import DevClusterError
from devcluster.paths import REPOSITORY
from devcluster.progress import say, step
from devcluster.taskgroup import TaskGroup
from finetune_cli.answers import print_answers

JOB_FILE = REPOSITORY / "examples" / "shakespeare.yaml"
OUTPUT = REPOSITORY / "build" / "try"
STEPS = 8
PROMPTS = ("To be, or not to be, that is", "KING HENRY.\n", "My lord, the moon is")
MAX_NEW_TOKENS = 32

Answers = list[dict[str, str]]


def run(output: Path, steps: int, base: str) -> None:
    """Train and compare, or show the results of an earlier run, and print where they are.

    Args:
        output: The directory of the results.
        steps: How many steps to train.
        base: The model, `smollm2` or `tiny-llama`.

    Raises:
        DevClusterError: A download or the training failed.
    """
    with TaskGroup() as group:
        model_task = group.start("model", model.smollm2 if base == "smollm2" else model.tiny_llama)
        texts_task = group.start("texts", corpus.shakespeare)
    model_directory, texts = model_task.result(), texts_task.result()
    arguments = training_arguments(model_directory, texts.train.parent, output, steps)
    answers = load_answers(output, arguments)
    if answers is None:
        train(arguments)
        with step("asking base and adapter", "about 30 s"):
            answers = generate_answers(model_directory, output / "adapter")
        save_answers(output, arguments, answers)
    print_answers(answers, base, "shakespeare")
    say(f"The adapter is in {output / 'adapter'}, and {output / 'report.html'} shows how it was trained.")
    say("Next, as root: `make demo` trains the same example on a real Kubernetes and serves it from vLLM.")


def training_arguments(model_directory: Path, texts: Path, output: Path, steps: int) -> list[str]:
    """Return the arguments of `finetune` that train the example from directories of this machine."""
    changes = {
        "spec.model.uri": f"pvc://models/{model_directory.name}",
        "spec.dataset.uri": "pvc://texts/train.txt",
        "spec.dataset.validation.uri": "pvc://texts/validation.txt",
        "spec.output.secretRef": "null",
        "spec.training.maxSteps": str(steps),
        "spec.evaluation.maxRows": "8",
        "spec.evaluation.samples": "1",
    }
    return [
        *("run", str(JOB_FILE), f"--output={output}"),
        *(f"--mount=models={model_directory.parent}", f"--mount=texts={texts}"),
        *(f"--set={path}={value}" for path, value in changes.items()),
    ]


def train(arguments: list[str]) -> None:
    """Run `finetune run` on the user's terminal. Raises DevClusterError if it fails; it has printed the reason."""
    command = [sys.executable, "-m", "finetune_cli.main", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise DevClusterError("the training failed for the reason above; `make try` continues from the last checkpoint")


def generate_answers(base: Path, adapter: Path) -> Answers:
    """Return how the base and the adapter continue each prompt, by greedy decoding."""
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for names that will change
    # These imports take seconds, and are not needed to show an earlier run.
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).eval()
    inputs = tokenizer(list(PROMPTS), padding=True, return_tensors="pt")

    def continue_prompts() -> list[str]:
        with torch.inference_mode():
            ids = adapted.generate(  # type: ignore[no-untyped-call]
                **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [str(text).strip() for text in texts]

    with adapted.disable_adapter():
        base_answers = continue_prompts()
    return [
        {"prompt": prompt, "base": base_answer, "adapter": answer}
        for prompt, base_answer, answer in zip(PROMPTS, base_answers, continue_prompts(), strict=True)
    ]


def load_answers(output: Path, arguments: list[str]) -> Answers | None:
    """Return the answers of a finished run with the same arguments, or None."""
    try:
        saved = json.loads((output / "answers.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if saved["arguments"] != _digest(arguments) or not (output / "adapter" / "manifest.json").exists():
        return None
    answers: Answers = saved["answers"]
    return answers


def save_answers(output: Path, arguments: list[str], answers: Answers) -> None:
    """Keep the answers for the next run."""
    partial = output / "answers.json.partial"
    partial.write_text(json.dumps({"arguments": _digest(arguments), "answers": answers}, indent=2))
    partial.rename(output / "answers.json")


def main(arguments: list[str]) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m devcluster.tryout", description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where the results go (default: build/try)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of training (default: %(default)s)")
    parser.add_argument(
        "--model", choices=("smollm2", "tiny-llama"), default="smollm2", help="what is trained (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    try:
        run(options.output.absolute(), options.steps, options.model)
    except DevClusterError as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; `make try` continues")
        return 130
    return 0


def _digest(arguments: list[str]) -> str:
    return hashlib.sha256("\0".join([JOB_FILE.read_text(), *arguments]).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
