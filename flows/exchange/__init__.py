"""Labels on their way between a workspace and people: what is handed out, as a sheet or as tasks of Label Studio, and what comes
back. It imports the cells of `wbc_model`.
"""
