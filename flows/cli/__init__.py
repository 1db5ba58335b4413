"""The `wbc` command, a file for each of its days, and what only it needs: the one place that sees all three rooms. It imports
whatever it calls, when it calls it: `wbc --help` is fast.
"""

# The order of the files is that of the commands in the help.
from flows.cli import data, stages, loop, labels, studies, sites, service, reports, registry  # noqa: F401, I001, RUF100
from flows.cli.command import app, main

__all__ = ["app", "main"]
