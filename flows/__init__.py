"""What acts on the outside world between two models: the pipeline's stages, the retraining flow, DVC, MLflow, the label store."""
