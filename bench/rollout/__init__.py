"""Measure how long it takes from a changed version of an AdapterDeployment until all pods serve it."""
