"""The base model: its files, modules and sizes, loading it onto a device, and how much memory it takes.

It knows neither the dataset nor the training loop; what the preflight asks of it needs no torch.
"""
