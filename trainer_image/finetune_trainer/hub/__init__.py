"""The Hugging Face hub: revisions resolved, files listed, read and fetched, the finished adapter pushed.

It knows neither torch nor how a model or a dataset is used.
"""
