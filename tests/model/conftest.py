"""A labelled set of rendered cells small enough to train on in seconds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wbc_model.core.classes import CLASS_INDEX
from wbc_model.core.images import to_square
from wbc_model.params import Params, parse_params
from wbc_model.rendering.cells import render_cells
from wbc_model.training.labelled import LabelledCells

ROOT = Path(__file__).parents[2]


def rendered_set(count: int, seed: int, size: int = 32) -> LabelledCells:
    cells = list(render_cells(count, seed, size=64))
    images = np.stack([to_square(Image.fromarray(cell.pixels), size) for cell in cells])
    labels = np.array([CLASS_INDEX[cell.label] for cell in cells])
    return LabelledCells(images, labels, tuple(f"{seed}-{i}" for i in range(count)))


def part(cells: LabelledCells, some: slice) -> LabelledCells:
    """Some of these cells."""
    return LabelledCells(cells.images[some], cells.labels[some], cells.sha256s[some])


@pytest.fixture(scope="session")
def labelled() -> LabelledCells:
    return rendered_set(160, seed=1)


@pytest.fixture(scope="session")
def validation() -> LabelledCells:
    return rendered_set(80, seed=2)


def tiny_params(**train: object) -> Params:
    """The project's own parameters with a preset that trains in seconds."""
    import yaml

    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["presets"]["small"] = {"image_size": 32, "batch_size": 16, "updates": 9, "precision": "32-true"}
    document["train"] |= {"eval_every": 3, **train}
    return parse_params(yaml.safe_dump(document))


@pytest.fixture
def params() -> Params:
    return tiny_params()
