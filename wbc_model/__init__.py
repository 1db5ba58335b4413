"""The learner as a library: cell images in, a model directory and numbers out.

Importing this package imports nothing else, so that the service can use its pure parts (`classes`, `errors`,
`images`, `card`) on a machine without PyTorch.
"""

__version__ = "0.1.0"
