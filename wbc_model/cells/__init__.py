"""The cells as data: manifests, the image store, the pools, and what is wrong with an image or a label. It imports `core` and the
parameters, and no torch.
"""
