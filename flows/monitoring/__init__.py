"""Watching: whether served cells are still as those that the model was made with, how right it is in use, and the nightly audit.
It imports the learner, the service's store, labelling and watch, the stages of the pipeline, retraining and onboarding.
"""
