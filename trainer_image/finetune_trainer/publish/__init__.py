"""Publish the adapter: its files, and last the manifest. Merge it into its base.

It knows neither the training loop nor the order of an attempt's steps.
"""
