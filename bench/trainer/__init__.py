"""Measure the trainer's speed: against the bare library, against common scripts, and from start to first step."""
