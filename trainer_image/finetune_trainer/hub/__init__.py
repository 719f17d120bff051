"""Use the Hugging Face hub: resolve revisions, list, read and download files, and push the finished adapter.

It knows neither torch nor how a model or a dataset is used.
"""
