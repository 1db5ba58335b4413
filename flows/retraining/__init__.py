"""The retraining as a Prefect flow: now or by schedule, the gate at its end, and fresh cells for the test pool. It imports the
modules of `flows` itself, `pipeline`, `registry` and `wbc_model`.
"""
