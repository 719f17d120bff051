"""The adapter: each fine-tuning method as PEFT's configuration, put onto a base and converted to a plain LoRA.

It knows neither the dataset nor the training loop nor where adapters are stored.
"""
