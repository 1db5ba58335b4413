"""Where work that is done shard by shard goes: to a Dask cluster, here or elsewhere. It imports `wbc_model` and its core."""
