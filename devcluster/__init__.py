"""Run a real Kubernetes on one machine without Docker, for the demo, the tests and the benchmarks."""
