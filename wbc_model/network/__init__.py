"""The network and its directory on disk: ResNet18 with attention, LossNet, prediction, batch-norm statistics. It imports
`core`.
"""
