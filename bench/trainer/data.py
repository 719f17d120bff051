"""Make the benchmark's data: a small random Llama, and docstrings of Python's standard library as texts."""

import ast
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

NOT_LIBRARY = {"site-packages", "test", "tests", "idlelib"}
SPECIAL = ["<pad>", "<end>"]


@dataclass(frozen=True)
class Size:
    """Sizes of the model and the dataset, and the number of repetitions."""

    hidden: int = 256
    layers: int = 4
    vocabulary: int = 4096
    max_length: int = 256
    rows: int = 384
    """Rows for our trainer and for the script. One epoch over them is one measurement."""
    overhead_steps: int = 40
    checkpoint_every: int = 10
    rounds: int = 7
    starts: int = 3
    compiled: bool = True
    """Whether torch.compile is measured. It needs a minute before its first step."""


@dataclass(frozen=True)
class BenchData:
    """The directory of the model and its tokenizer, and the texts for training and validation."""

    size: Size
    model: Path
    texts: list[str]
    held_out: list[str]

    @staticmethod
    def jsonl(texts: list[str]) -> str:
        """Return texts as a dataset of format ``text``."""
        return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def docstrings() -> Iterator[str]:
    """Yield signature and docstring of each function of Python's standard library, file by file.

    Most are short and few are long, like answers to instructions. Python 3.11 has 6,300 texts. With a vocabulary of
    4,096, they have 64 tokens in the mean, 37 in the median, 202 at the 95th percentile and 1,614 at most: they fill
    23 % of rows of 256 tokens.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if NOT_LIBRARY & set(path.relative_to(root).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # files that are wrong on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
                yield f"def {node.name}({ast.unparse(node.args)}):\n{text}"


def make(directory: Path, size: Size) -> BenchData:
    """Write the model and its tokenizer, and choose rows spread evenly over the standard library."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = list(docstrings())
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=SPECIAL[0], eos_token=SPECIAL[1])
    model = directory / "models" / "llama"
    tokenizer.save_pretrained(model)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=max(size.hidden // 64, 1),
        num_key_value_heads=max(size.hidden // 128, 1),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(model)
    sample = texts[:: max(len(texts) // (size.rows + 8), 1)]
    return BenchData(size, model, sample[: size.rows], sample[size.rows : size.rows + 4])
