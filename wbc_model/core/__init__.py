"""What the service needs as well, and exactly what the Bento holds: classes, errors, files, images, the model card, and how
images and logits are read. It imports nothing else of ours, and no torch.
"""
