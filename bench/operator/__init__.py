"""How long the operator takes to answer, and how many writes it costs the API server."""
