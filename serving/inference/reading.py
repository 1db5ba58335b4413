"""What a model said of the images of one request, before it becomes a report or part of one."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.contract.schemas import ModelName
from serving.inference.classify import Classifier, Seen


class Reading(NamedTuple):
    """What a model said of the files of one request. `false_alarms`: how often it takes a cell of its site for one of another
    site; None where it cannot tell sites."""

    seen: Sequence[Seen]
    files: Sequence[bytes]
    model: ModelName
    confusion: NDArray[np.int64] | None
    false_alarms: float | None = None
    rendered: bool = False

    @classmethod
    def of(cls, classifier: Classifier, seen: Sequence[Seen], files: Sequence[bytes]) -> "Reading":
        """What a classifier has seen in files."""
        card = classifier.card
        false_alarms = None if card.out_of_distribution is None else card.out_of_distribution.false_alarms
        return cls(seen, files, classifier.model, classifier.confusion, false_alarms, card.rendered)
