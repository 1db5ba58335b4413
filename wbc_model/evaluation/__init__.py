"""What a model is worth: metrics, calibration, plots, the shift between sites, and cells that it knew before. It imports `core`,
`network` and `cells`.
"""
