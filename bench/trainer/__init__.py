"""How fast the trainer is: against the bare library, against the scripts that people write, and from its start to its first step."""
