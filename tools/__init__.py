"""Write the generated files of this repository, and run its tests. Nothing here is installed."""
