"""Read the base model's files, modules and sizes, load it onto a device, and measure its memory.

It knows neither the dataset nor the training loop. The modules that the preflight uses need no torch.
"""
