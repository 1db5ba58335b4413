"""What a study has done already: records of trainings and queries by their names, and models that a query waits for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wbc_model.core.files import append_durably, building, file_sha256
from wbc_model.core.lock import locked
from wbc_model.core.model_card import WEIGHTS, ModelCard
from wbc_model.network.card_page import write_card
from wbc_model.network.resnet import AttentionResNet18


@dataclass(frozen=True)
class Provenance:
    """What the code is. `train` and `query` name what a result depends on. `facts` are written beside each result."""

    train: str
    query: str
    facts: Mapping[str, str]


class Records:
    """What was done already, by key: a JSON line each, in a file that is only ever appended to. It is safe for several
    processes, and for a kill at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        self._read = 0

    def _refresh(self) -> None:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size <= self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a torn last line is of a write that was killed, or is not over yet
        self._read += len(whole)
        for line in whole.decode().splitlines():
            record = json.loads(line)
            self._known.setdefault(record["key"], record)

    def get(self, key: str) -> dict[str, Any] | None:
        """The record under this key, where there is one."""
        self._refresh()
        return self._known.get(key)

    def add(self, key: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Record something under its key, durably."""
        with locked(self.path.with_suffix(".lock")):
            append_durably(self.path, json.dumps({"key": key, **content}, allow_nan=False) + "\n")
        record = self.get(key)
        assert record is not None  # noqa: S101 - it was just written
        return record


def save_weights(directory: Path, network: AttentionResNet18, card: ModelCard) -> None:
    """Save what a query needs of a model: weights and card. The ONNX file would cost more than a small training."""
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with building(directory) as temporary:
        save_file(state, temporary / WEIGHTS)
        weights = file_sha256(temporary / WEIGHTS)
        write_card(temporary, card.model_copy(update={"version": weights[:12], "sha256": {WEIGHTS: weights}}))
