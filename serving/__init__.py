"""The HTTP service, cell images in and classifications with what a person must look at out; beside its packages lie its start and
the service itself. It imports of `wbc_model` only `core`, which is copied into the Bento, and runs without PyTorch where the
engine is OpenVINO.
"""
