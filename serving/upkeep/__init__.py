"""What is done beside the work on reports: metrics, backup, export, removal, deleting what ran out, by a clock that is not
believed blindly, and counting open reports by settings that have changed. It imports `contract`, `security`, `reports` and
`wbc_model.core`.
"""
