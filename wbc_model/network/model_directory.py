"""The model directory: weights as safetensors, the network as ONNX, and the card."""

import logging
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from wbc_model.core.files import building, file_sha256
from wbc_model.core.model_card import ONNX, REFERENCE, WEIGHTS, ModelCard, read_card
from wbc_model.core.reference import Reference
from wbc_model.network.card_page import write_card
from wbc_model.network.resnet import AttentionResNet18


class _Served(nn.Module):
    """The graph that is served: uint8 images (N, S, S, 3) to logits, predicted loss and embedding, normalisation
    inside."""

    def __init__(self, network: AttentionResNet18) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.network(images.permute(0, 3, 1, 2).float() / 255)
        return output.logits, output.predicted_loss, output.embedding


def export_onnx(network: AttentionResNet18, size: int, path: Path) -> None:
    """Write the network as ONNX with a dynamic batch: `images` uint8 to `logits`, `predicted_loss` and `embedding` float32."""
    import onnx  # only writing needs it

    outputs = ["logits", "predicted_loss", "embedding"]
    served = _Served(network).eval()
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            served,
            (example,),
            str(path),
            input_names=["images"],
            output_names=outputs,
            dynamo=False,
            dynamic_axes={name: {0: "batch"} for name in ("images", *outputs)},
            opset_version=18,
        )
    onnx.checker.check_model(str(path), full_check=True)


def save_model(directory: Path, network: AttentionResNet18, card: ModelCard, reference: Reference | None = None) -> ModelCard:
    """Write a whole model directory in the place of an older one; returns the card with the files' digests."""
    with building(directory) as temporary:
        network = network.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, temporary / WEIGHTS)
        export_onnx(network, card.input_size, temporary / ONNX)
        digests = {name: file_sha256(temporary / name) for name in (WEIGHTS, ONNX)}
        card = card.model_copy(update={"sha256": digests, "version": card.version or digests[WEIGHTS][:12]})
        card = with_reference(temporary, card, reference)
        write_card(temporary, card)
    return card


def with_reference(directory: Path, card: ModelCard, reference: Reference | None) -> ModelCard:
    """Have this reference, or none, in a model directory; returns its card, which is not written yet."""
    digests = {name: digest for name, digest in card.sha256.items() if name != REFERENCE}
    if reference is None:
        (directory / REFERENCE).unlink(missing_ok=True)
    else:
        reference.write(directory / REFERENCE)
        digests[REFERENCE] = file_sha256(directory / REFERENCE)
    return card.model_copy(update={"sha256": digests})


def load_model(directory: Path) -> tuple[AttentionResNet18, ModelCard]:
    """The network in evaluation mode, on the CPU, and its card; raises WbcError when the directory is damaged."""
    card = read_card(directory)
    architecture = card.architecture
    network = AttentionResNet18(architecture.attention, architecture.lossnet, len(card.classes), architecture.norm)
    network.load_state_dict(load_file(directory / WEIGHTS))
    return network.eval(), card
