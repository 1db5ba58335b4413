"""Who answers: the engine, the classifier around it, the heat map, and the watch over the champion. It imports `contract` and
`wbc_model.core`, and the network where a GPU is.
"""
