"""The finished adapter's way into the storage: its files, the merged model, and the manifest, which comes last.

It knows neither the training loop nor the order in which an attempt does things.
"""
