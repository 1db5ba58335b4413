"""Where the retraining and the people who label meet: cells go into the store of the service, agreed labels come out of it, and
corrections of reports become cells of the pools. It imports the modules of `flows` itself, `registry`, the store's side in
`serving`, and `wbc_model`.
"""
