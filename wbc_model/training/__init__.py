"""The training and its parts: augmentation, hard samples, pseudo-labels, checkpoints, pre-training. It imports `core`, the
parameters, `network`, `cells` and `evaluation`.
"""
