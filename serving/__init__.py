"""The HTTP service: cell images in, classifications with what a person must look at out.

Runs without PyTorch where the engine is OpenVINO, and imports of `wbc_model` only its pure parts (`classes`, `errors`,
`images`, `card`): that much is copied into the Bento.
"""
