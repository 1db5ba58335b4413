"""A network that several processes work with: its weights lie in one file, which each process reads once."""

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256, make_folder
from wbc_model.network.resnet import AttentionResNet18


@dataclass(frozen=True)
class NetworkFile:
    """What a process needs to build the network: the file's `sha256`, the network's arguments, the device and the `path`.

    Files of the same content are equal: what a process has read it need not read again.
    """

    sha256: str
    attention: str
    lossnet: bool
    classes: int
    norm: str
    device: str
    path: Path = field(compare=False)


@contextlib.contextmanager
def network_file(network: AttentionResNet18, folder: Path) -> Iterator[NetworkFile]:
    """The network in a file in `folder`, for as long as the block lasts. What a killed process left there begins with a dot."""
    make_folder(folder)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".network-", suffix=".safetensors") as file:
        path = Path(file.name).absolute()
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, path)
        device = str(next(network.parameters()).device)
        has_lossnet, classes = network.lossnet is not None, network.fc.out_features
        yield NetworkFile(file_sha256(path), network.attention, has_lossnet, classes, network.norm, device, path)


@functools.lru_cache(maxsize=1)
def network_in(file: NetworkFile) -> AttentionResNet18:
    """The network of a file, in evaluation mode. Raises WbcError where the file is not there."""
    network = AttentionResNet18(file.attention, file.lossnet, file.classes, file.norm)
    try:
        network.load_state_dict(load_file(file.path))
    except FileNotFoundError:
        raise WbcError(f"{file.path} is not there: a worker needs the workspace at the same path (docs/retraining.md)") from None
    return network.eval().to(file.device)
