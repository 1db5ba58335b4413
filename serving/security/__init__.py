"""Who may ask, and what is proved of it: API keys, hosts, the audit log and its chain, the keys of kept images. It imports
`contract` and `wbc_model.core`.
"""
