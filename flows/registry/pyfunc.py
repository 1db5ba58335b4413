"""A registered model as MLflow's users load it: `mlflow.pyfunc.load_model("models:/wbc@champion")`.

MLflow imports this module by the name in the model's MLmodel file. Nothing is unpickled, and the answers are the service's.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from serving.contract.schemas import NOT_A_LEUKOCYTE, SITE_UNKNOWN, Classified, Result
from serving.inference.classify import Classifier
from serving.inference.engine import thread_count
from wbc_model.core.errors import WbcError

_NO_CELL_OF_OURS = {NOT_A_LEUKOCYTE, SITE_UNKNOWN}


class ServedModel:
    """A model directory that answers as the service does, without HTTP."""

    def __init__(self, directory: Path) -> None:
        """Raises WbcError where the directory is damaged or its graph cannot be loaded."""
        self.classifier = Classifier.open(directory)

    def predict(self, model_input: Any) -> pd.DataFrame:
        """One row per image, with the index of the input.

        `model_input` is one image, a sequence of images, or a table with one column of images. An image is the bytes of an image
        file or the path of one. The columns of the answer:

        - `label`; `probability_CLASS` (float, 0 to 1) for each class; `prediction_set` (list of classes).
        - `predicted_loss` (float; None for a model without LossNet).
        - `review` (bool) and `reasons` (list): whether and why a person should look at this image.
        - `out_of_distribution` (bool): the image seems to show no leukocyte, or to be of a site that the model does not know.
        - `rejected`: why the image could not be read; None where it could. The other columns are empty then.

        Raises WbcError where the input is none of this.
        """
        images, index = _images(model_input)
        step = self.classifier.engine.chunk
        chunks = [images[start : start + step] for start in range(0, len(images), step)]
        with ThreadPoolExecutor(thread_count(), "predict") as pool:
            results = [one for chunk in pool.map(self.classifier.classify_chunk, chunks) for one in chunk]
        return pd.DataFrame([_row(one) for one in results], index=index, columns=self._columns())

    def _columns(self) -> list[str]:
        probabilities = [f"probability_{name}" for name in self.classifier.card.classes]
        return [
            "label",
            *probabilities,
            "prediction_set",
            "predicted_loss",
            "review",
            "reasons",
            "out_of_distribution",
            "rejected",
        ]


def _images(model_input: Any) -> tuple[Sequence[bytes], pd.Index]:
    """The images' bytes, and the index of the rows that they came in."""
    if isinstance(model_input, pd.DataFrame):
        if len(model_input.columns) != 1:
            names = ", ".join(map(str, model_input.columns))
            raise WbcError(f"the table has the columns {names}: give one column, of image bytes or of paths")
        model_input = model_input.iloc[:, 0]
    if isinstance(model_input, bytes | str | Path):
        model_input = [model_input]
    if not isinstance(model_input, Iterable):
        raise WbcError(f"{type(model_input).__name__} holds no images: give a list or a table with one column")
    column = model_input if isinstance(model_input, pd.Series) else pd.Series(list(model_input), dtype=object)
    return [_bytes(place, one) for place, one in column.items()], column.index


def _bytes(place: object, image: object) -> bytes:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise WbcError(f"image {place}: {image} cannot be read: {error.strerror}") from None
    raise WbcError(f"image {place} is of type {type(image).__name__}: give the bytes of an image file, or its path")


def _row(result: Result) -> dict[str, Any]:
    if not isinstance(result, Classified):
        return {"prediction_set": [], "reasons": [], "review": True, "rejected": result.problem.detail}
    return {
        "label": result.label,
        **{f"probability_{name}": value for name, value in result.probabilities.items()},
        "prediction_set": list(result.prediction_set),
        "predicted_loss": result.predicted_loss,
        "review": result.review.required,
        "reasons": list(result.review.reasons),
        "out_of_distribution": bool(_NO_CELL_OF_OURS & set(result.review.reasons)),
        "rejected": None,
    }


def _load_pyfunc(path: str) -> ServedModel:
    """What MLflow calls; `path` is the downloaded model directory."""
    return ServedModel(Path(path))
