"""The learner as a library: cell images in, a model directory and numbers out, and beside its packages `params`, every number
that a user may change. It imports neither `flows` nor `serving`, and this file nothing at all: the service needs no PyTorch.
"""

__version__ = "0.1.0"
