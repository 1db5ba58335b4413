"""`wbc benchmark`: data and records of a study, and where its numbers come from. It imports the modules of `flows` itself,
`pipeline` and `wbc_model`.
"""
