"""What pods tell the operator over HTTP: who may speak, what they said last, and the server."""
