"""Filling pools as the commands do: the first query is handed in."""

from functools import partial

from wbc_model.acquisition.queue import first_query
from wbc_model.cells import ingest as module

ingest = partial(module.ingest, first_query=first_query)
