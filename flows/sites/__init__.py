"""Another site: onboarding, calibration, and the champion there. It imports the modules of `flows` itself, `pipeline`, `registry`
and `wbc_model`.
"""
