"""Decisions, one to a file: pure functions of what was observed, each with a table test."""
