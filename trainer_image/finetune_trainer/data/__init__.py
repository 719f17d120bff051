"""Find the files of the dataset, read and check their rows, and turn them into token sequences with labels.

It knows neither the model's weights nor the training loop; only ``dataset`` and ``tokens`` need a tokenizer.
"""
