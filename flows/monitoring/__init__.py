"""Watching: whether served cells are still as those that the model was made with, how right it is in use, and the nightly audit.
It imports the learner, the store of the service, its labelling and its engines, and the stages of the pipeline.
"""
