"""Drawn cells, for the demo and the tests. It imports `core`."""
