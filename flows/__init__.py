"""What acts on the outside world between two models; beside its packages lies what they all stand on: the workspace, its labels
and its state, MLflow. These modules import `exchange`, the contract of the
service, and `wbc_model`.
"""
