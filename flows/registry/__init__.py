"""The models that were made: the champion and what people say of it, scores, the learning curve, and the disk that all of them
take. It imports the modules of `flows` itself, `pipeline` and `wbc_model`.
"""
