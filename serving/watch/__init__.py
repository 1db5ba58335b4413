"""The watch of the service: it keeps what it measured of the cells that it saw, and shows what `flows` found in that. It imports
`contract`, `inference` and `reports`.
"""
