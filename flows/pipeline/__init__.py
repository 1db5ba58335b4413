"""The bodies of dvc.yaml's stages, the checks, the Bento and its int8, the hash of each stage's code, and DVC itself. It imports
the modules of `flows` itself, the service that it packages, and `wbc_model`.
"""
