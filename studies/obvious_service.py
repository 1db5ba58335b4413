"""The service that is written first: FastAPI, Pillow and eager PyTorch, as the tutorials have it. What ours is measured against.

    WBC_MODEL_DIR=DIR uvicorn obvious_service:app --app-dir studies

It has the weights of the model directory and resizes each image whole. Our service also pays for finding the nucleus, digests,
limits and scores. This one has none of them.
"""

import os
from pathlib import Path

import numpy as np
import torch
from fastapi import FastAPI, UploadFile
from PIL import Image

from wbc_model.network.model_directory import load_model

network, card = load_model(Path(os.environ["WBC_MODEL_DIR"]))
app = FastAPI()


@app.get("/readyz")
def ready() -> str:
    return "ready"


@app.post("/classify")
def classify(images: list[UploadFile]) -> list[dict[str, object]]:
    size = card.input_size, card.input_size
    pixels = np.stack([np.asarray(Image.open(image.file).convert("RGB").resize(size)) for image in images])
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).logits
    probabilities = (logits / card.temperature).softmax(dim=1)
    labels = [card.classes[index] for index in probabilities.argmax(dim=1)]
    return [
        {"label": label, "probabilities": dict(zip(card.classes, row, strict=True))}
        for label, row in zip(labels, probabilities.tolist(), strict=True)
    ]
