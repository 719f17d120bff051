"""Build the objects that the operator creates: models in, dictionaries out.

Nothing here uses a clock, the environment, random numbers or the API server.
"""
