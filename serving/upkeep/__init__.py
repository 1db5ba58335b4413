"""What is done to the store beside the work on reports: backup, export, removal, deleting what ran out, by a clock that is not
believed blindly. It imports `contract`, `security`, `reports` and `wbc_model.core`.
"""
