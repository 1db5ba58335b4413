"""Taking in a new champion while the service runs.

A thread looks at the model directory. When the files have changed, and are unchanged between two looks, it loads the new model.
It tries the new model out beside the one in use, and then puts it in its place. Requests in progress hold the old model, which
goes when the last of them is answered. A directory that cannot be used is one line in the log, and changes nothing.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from serving.inference.classify import Classifier
from wbc_model.core.errors import WbcError
from wbc_model.core.files import Signature, signature
from wbc_model.core.model_card import CARD, ONNX, WEIGHTS

LOOK_SECONDS: Final = 1.0

_LOG = logging.getLogger("bentoml.wbc")


def signatures(directory: Path) -> tuple[Signature, ...]:
    """Those of a model directory's files."""
    return tuple(signature(directory / name) for name in (CARD, ONNX, WEIGHTS))


class ChampionWatch:
    """Loads the model of a directory, which may come later, and again whenever there is another. `install` is told of each that
    is ready."""

    def __init__(self, directory: Path, install: Callable[[Classifier], None]) -> None:
        self.directory = directory
        self._install = install
        self._last_look: tuple[Signature, ...] = ()
        self._tried: tuple[Signature, ...] = ()  # loaded or refused
        self._awaited = True  # until there is a first model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="champion", daemon=True)

    def start(self) -> None:
        """Load the first model and go on looking, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, after the model that it may be loading."""
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Take in the directory's model if it is another one and nobody is still writing it."""
        now = signatures(self.directory)
        settled = now == self._last_look
        self._last_look = now
        if settled and now != self._tried:
            self.load()

    def load(self) -> None:
        """Load the directory's model, try it out and install it; what cannot be used is one line in the log."""
        self._tried = signatures(self.directory)
        if self._awaited and not any(self._tried):
            _LOG.info("there is no model at %s yet: nothing is classified before there is one", self.directory)
            return
        try:
            classifier = Classifier.open(self.directory)
        except (WbcError, OSError) as error:
            _LOG.error("the model is refused and the one before, if any, stays in use: %s", error)
            return
        if signatures(self.directory) != self._tried:
            self._tried = ()  # replaced while it was read, so that it may be parts of two; the next look tries again
            return
        self._install(classifier)
        self._awaited = False
        _LOG.info("model %s answers from now on", classifier.card.version)

    def _watch(self) -> None:
        self.load()
        while not self._stop.wait(LOOK_SECONDS):
            self.look()
