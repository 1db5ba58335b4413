"""`python -m flows.cli` is `wbc`."""

from flows.cli import main

main()
