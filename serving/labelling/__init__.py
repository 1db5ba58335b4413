"""People name the cells that the model asks about: queues, who is given which cell, what readers said, and what they agree on. It
imports `contract`, `security`, `reports` and `wbc_model.core`.
"""
