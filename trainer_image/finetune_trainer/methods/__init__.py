"""Configure each fine-tuning method in PEFT, add its adapter to a base, and convert adapters to a plain LoRA.

It knows neither the dataset nor the training loop nor where adapters are stored.
"""
