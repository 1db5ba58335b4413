"""The page for the morphologist: the files as a browser gets them, and the module that serves them. It imports nothing of
ours.
"""
