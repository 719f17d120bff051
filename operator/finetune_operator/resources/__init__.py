"""Builders of the objects that the operator creates: models in, dictionaries out.

They know no clock, no environment, no randomness and no API server.
"""
