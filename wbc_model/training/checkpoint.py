"""A training's state on disk: tensors as safetensors, the rest as JSON in its header. No pickle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wbc_model.core.files import write_atomic_by

CHECKPOINT_SECONDS: Final = 60.0  # a checkpoint is four times the weights: not after every validation step


@dataclass
class Checkpoint:
    """`key` names the inputs of the training that it belongs to; `tensors` are named `network.*`, `optimizer.*`, ..."""

    key: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def write(self, path: Path) -> None:
        """Replace the checkpoint at `path` in one step; no two of the tensors may share memory."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        metadata = {"key": self.key, "facts": json.dumps(self.facts)}
        write_atomic_by(path, lambda temporary: save_file(tensors, temporary, metadata))

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix.`, without the prefix."""
        return {name.removeprefix(prefix + "."): value for name, value in self.tensors.items() if name.startswith(prefix + ".")}


def read_checkpoint(path: Path, key: str) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none, or it belongs to a training with other inputs."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            return Checkpoint(key, {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["facts"]))  # noqa: SIM118
    except SafetensorError:
        return None  # written by something else: training starts afresh and replaces it


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as flat tensors named `<parameter index>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, values in state.items() for name, value in values.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Inverse of `optimizer_tensors`, into an optimizer over the same parameters.

    Moments take the memory layout of their parameter: the fused kernels walk both in memory order.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        parameter = parameters[int(index)]
        value = torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
