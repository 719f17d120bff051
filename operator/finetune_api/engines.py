"""Name the inference engines. What is true of each is in the module of that name in ``finetune_engines``."""

from typing import Literal

EngineName = Literal["vllm", "sglang", "merged"]
"""``merged`` stands for any engine without LoRA, which serves base and adapter as one model."""
