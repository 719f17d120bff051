"""What a job will need, from its spec and the model's config.json alone: parameters, memory, steps, time. Closed forms; no torch, no weights."""
