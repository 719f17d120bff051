"""Builders of the objects that the operator creates: models in, dictionaries out; no clock, environment or randomness."""
