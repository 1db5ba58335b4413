"""What is kept: the store and its tables, what happens to a report until it is signed, and the messages that then go out. It
imports `contract`, `inference`, `security`, `formats`, its own `migrations` and `wbc_model.core`.
"""
