"""From posted files to results: decoding and inference in threads, off the event loop."""

import asyncio
import base64
import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import ceil
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.contract.differential import card_confusion
from serving.contract.problems import PREFIX
from serving.contract.schemas import (
    AMBIGUOUS,
    HIGH_PREDICTED_LOSS,
    NOT_A_LEUKOCYTE,
    SITE_UNKNOWN,
    Classified,
    ImageProblem,
    ModelName,
    Reason,
    Rejected,
    Result,
    Review,
)
from serving.inference.engine import Answer, Engine, open_engine, thread_count
from serving.inference.heat_map import heat, heat_map
from wbc_model.core.errors import ImageRejected
from wbc_model.core.images import decode, large_enough, look_at, shown_scale
from wbc_model.core.model_card import ModelCard, read_card
from wbc_model.core.out_of_distribution import cell_score, site_score
from wbc_model.core.probabilities import softmax
from wbc_model.core.reference import Axes, describe, read_reference
from wbc_model.core.twins import fingerprint

# bf16 moves a logit by a few hundredths. That cannot be seen in a probability of 0.9 or more, but it can turn a near tie; so
# whatever is less sure is computed again in float32, and with bf16 the service names no other class than the offline evaluation.
# int8 moves a probability of 0.9 or more by some hundredths: what that costs in labels, the gate of flows/pipeline/quantise.py
# measures.
SURE: Final = 0.9
# A cell takes milliseconds to decode, a 40-megapixel PNG of 100 kB seconds: without a bound one request of 256 of them would
# keep everybody else waiting for minutes.
DECODE_SECONDS: Final = 20.0


class Seen(NamedTuple):
    """What is said of one file, and by what its cell is known again (wbc_model/core/twins.py): None where it was rejected, or
    where nobody asked for it.

    `measures` (WIDTH,) of wbc_model/core/reference.py are there where they were asked for.
    """

    result: Result
    fingerprint: bytes | None
    measures: NDArray[np.float32] | None = None


class Budget:
    """The processor time that the decoding of one request's images may take, over all threads; `with budget:` around each."""

    def __init__(self, seconds: float = DECODE_SECONDS) -> None:
        self.seconds = seconds
        self._spent = 0.0
        self._lock = threading.Lock()
        self._started = threading.local()

    def __enter__(self) -> None:
        if self._spent > self.seconds:
            detail = f"the request's images before it took {self.seconds:.0f} seconds to decode; send crops of single cells"
            raise ImageRejected("too_large", detail)
        self._started.at = time.thread_time()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._spent += time.thread_time() - self._started.at


class Classifier:
    """A model, its engine and the threads that use it."""

    def __init__(self, card: ModelCard, engine: Engine, threads: int, axes: Axes | None = None) -> None:
        self.card = card
        self.engine = engine
        self.axes = axes  # of the embedding; None for a model that was made without a reference
        self.model = ModelName(name=card.name, version=card.version)
        self.confusion = card_confusion(card)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "classify")

    @classmethod
    def open(cls, directory: Path) -> "Classifier":
        """Check and load a model directory; raises WbcError in one clear line."""
        card = read_card(directory)
        threads, reference = thread_count(), read_reference(directory, card)
        return cls(card, open_engine(directory, card, threads), threads, None if reference is None else reference.axes)

    def close(self) -> None:
        """Let the threads finish what they do and end them."""
        self._pool.shutdown(cancel_futures=True)

    async def classify(self, files: Sequence[bytes], explain: bool = False) -> list[Result]:
        """One result per file, in order; with `explain` each has a heat map."""
        return [seen.result for seen in await self.see(files, explain, fingerprints=False)]

    async def see(
        self, files: Sequence[bytes], explain: bool = False, measure: bool = False, fingerprints: bool = True
    ) -> list[Seen]:
        """As `classify`, each with the cell's fingerprint unless nobody looks for its twin, and with `measure` what was measured.

        A thread takes a chunk of files all the way from bytes to results: while one thread waits for the engine another decodes.
        Of a small request every thread gets a share.
        """
        loop = asyncio.get_running_loop()
        step = min(self.engine.chunk, ceil(len(files) / self._threads))
        chunks = [files[start : start + step] for start in range(0, len(files), step)]
        look = partial(self.see_chunk, explain=explain, budget=Budget(), measure=measure, fingerprints=fingerprints)
        work = (loop.run_in_executor(self._pool, look, chunk) for chunk in chunks)
        return [seen for chunk in await asyncio.gather(*work) for seen in chunk]

    def classify_chunk(self, files: Sequence[bytes], explain: bool = False, budget: Budget | None = None) -> list[Result]:
        """One result per file, in order; blocks. Files after the budget is used up are rejected."""
        return [seen.result for seen in self.see_chunk(files, explain, budget, fingerprints=False)]

    def see_chunk(
        self,
        files: Sequence[bytes],
        explain: bool = False,
        budget: Budget | None = None,
        measure: bool = False,
        fingerprints: bool = True,
    ) -> list[Seen]:
        """As `classify_chunk`, each with the cell's fingerprint unless nobody looks for its twin (half a millisecond). With
        `measure` it has what was measured, too."""
        budget = budget or Budget()
        digests = [hashlib.sha256(data).hexdigest() for data in files]
        found: list[Seen | None] = [None] * len(files)
        pixels, shown, places, prints = [], [], [], []
        for place, data in enumerate(files):
            try:
                with budget:
                    image, facts = decode(data, large_enough(self.card.input_size, self.card.view))
                    view, appearance = look_at(image, facts, self.card.input_size, self.card.view)
                    prints.append(fingerprint(image, shown_scale(image, facts)) if fingerprints else None)
            except ImageRejected as error:
                found[place] = Seen(_rejected(error, digests[place]), None)
            else:
                pixels.append(view)
                shown.append(appearance)
                places.append(place)
        if pixels:
            answer = self.infer(np.stack(pixels))
            probabilities = softmax(answer.logits, self.card.temperature)
            reasons = self._reasons(answer, np.stack(shown))
            rows = self._measured(np.stack(pixels), np.stack(shown), answer) if measure else [None] * len(pixels)
            for row, place in enumerate(places):
                loss = float(answer.predicted_loss[row])
                result = self._classified(probabilities[row], loss, reasons[row], digests[place])
                if explain:
                    hot = heat(pixels[row], self.engine, int(probabilities[row].argmax()))
                    result.heat_map = base64.b64encode(heat_map(pixels[row], hot)).decode()
                found[place] = Seen(result, prints[row], rows[row])
        return [seen for seen in found if seen is not None]

    def infer(self, images: NDArray[np.uint8]) -> Answer:
        """What the engine says of views (N, S, S, 3), and in float32 of those it is not SURE of; blocks."""
        answer = self.engine.infer(images)
        unsure = np.flatnonzero(softmax(answer.logits, self.card.temperature).max(axis=1) < SURE)
        if self.engine.reduced and len(unsure):
            exact: Answer = self.engine.infer(images[unsure], exact=True)
            answer.logits[unsure], answer.predicted_loss[unsure] = exact.logits, exact.predicted_loss
        return answer

    def _measured(self, views: NDArray[np.uint8], shown: NDArray[np.float64], answer: Answer) -> list[NDArray[np.float32]]:
        return list(describe(self.card, views, shown, answer.logits, answer.embedding, self.axes))

    def _reasons(self, answer: Answer, appearance: NDArray[np.float64]) -> list[list[Reason]]:
        """Per cell the reasons for review beside an ambiguous prediction set; none where the card has no thresholds."""
        known = self.card.out_of_distribution
        if known is None:
            return [[] for _ in appearance]
        foreign = site_score(known, appearance) > known.site_threshold
        # The density of this site's cells says nothing of cells from another site.
        other = (cell_score(known, answer.logits, appearance) > known.cell_threshold) & ~foreign
        limit = np.inf if known.predicted_loss_threshold is None else known.predicted_loss_threshold
        found: list[tuple[Reason, NDArray[np.bool_]]] = [
            (NOT_A_LEUKOCYTE, other),
            (SITE_UNKNOWN, foreign),
            (HIGH_PREDICTED_LOSS, answer.predicted_loss > limit),
        ]
        return [[reason for reason, where in found if where[row]] for row in range(len(appearance))]

    def _classified(self, probabilities: NDArray[np.float64], loss: float, others: list[Reason], digest: str) -> Classified:
        classes = self.card.classes
        order = np.argsort(-probabilities, kind="stable")
        chosen = [classes[index] for index in order if index == order[0] or probabilities[index] >= self.card.conformal_threshold]
        ambiguous: list[Reason] = [AMBIGUOUS] if len(chosen) != 1 else []
        reasons = ambiguous + others
        return Classified(
            label=classes[order[0]],
            probabilities=dict(zip(classes, map(float, probabilities), strict=True)),
            prediction_set=chosen,
            predicted_loss=loss if self.card.architecture.lossnet else None,
            review=Review(required=bool(reasons), reasons=reasons),
            sha256=digest,
        )


def _rejected(error: ImageRejected, digest: str) -> Rejected:
    problem = ImageProblem(
        type=f"{PREFIX}image:{error.reason.replace('_', '-')}",
        title="Image rejected",
        detail=error.detail,
        reason=error.reason,  # type: ignore[arg-type]  # pydantic checks it
    )
    return Rejected(problem=problem, sha256=digest)
