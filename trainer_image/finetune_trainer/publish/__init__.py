"""Publish the adapter: its files, the merged model, and last the manifest.

It knows neither the training loop nor the order in which an attempt does things.
"""
