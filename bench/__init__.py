"""Benchmarks: each prints a table, and writes JSON with --output json."""
