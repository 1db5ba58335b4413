"""The HTTP interface: the routes, the layer around them, limits, and what a started service works with. It imports all other
packages of `serving`, and `wbc_model.core`.
"""
