"""The history of the store's tables as Alembic migrations; one that is there is never edited, as databases were made by it. It
imports `wbc_model.core`, and is handed the tables.
"""
