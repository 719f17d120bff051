"""The dataset: its files found, read as rows, checked, and made into token sequences with labels.

It knows neither the model's weights nor the training loop; only ``dataset`` and ``tokens`` need a tokenizer.
"""
