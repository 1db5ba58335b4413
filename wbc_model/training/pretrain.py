"""Self-supervised pre-training: what the pool's cells look like, learnt before any label is used.

Two augmented views of every cell go through the network, and its embedding is trained to know them for the same cell. There are
three methods, of which none needs large batches. Losses and heads are LightlySSL's. What comes out are the weights that a
training begins with; classifier and LossNet are not among them.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from wbc_model.code_version import code_version
from wbc_model.core.errors import WbcError, counted
from wbc_model.core.files import write_atomic_by
from wbc_model.core.lock import locked
from wbc_model.network.resnet import AttentionResNet18, load_imagenet
from wbc_model.params import Params
from wbc_model.training.augment import augment
from wbc_model.training.batches import BatchPlan, seeded
from wbc_model.training.checkpoint import (
    CHECKPOINT_SECONDS,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
)
from wbc_model.training.fabric import Fabric
from wbc_model.training.pseudo_labels import UnlabelledCells
from wbc_model.training.schedule import WEIGHT_DECAY, learning_rate

WIDTH: Final = 512  # of the embedding
STRONG_SHARE: Final = 0.5  # of the views; the others are augmented mildly
HEADS: Final = ("fc.", "lossnet.")
COLLAPSED: Final = 0.02  # below this spread all embeddings are nearly equal; 1 is the spread of random unit vectors
Embed = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]


class Method(nn.Module):
    """Heads and loss of a method: `forward` gives the loss of views (2 N, 3, S, S), of which view i + N is of the same cell as
    view i; `network` embeds them by `embed`."""

    def follow(self, network: nn.Module) -> None:
        """Called after each update of the network."""


class SimSiam(Method):
    """Chen & He 2021: each view's projection predicts the other's, to which no gradient goes."""

    def __init__(self, network: nn.Module) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead

        super().__init__()
        self.project = SimSiamProjectionHead(WIDTH, WIDTH, WIDTH)
        self.predict = SimSiamPredictionHead(WIDTH, WIDTH // 4, WIDTH)
        self.similarity = NegativeCosineSimilarity()

    def forward(self, embed: Embed, network: nn.Module, views: Tensor) -> Tensor:
        first, second = map(self.project, embed(network, views))
        loss: Tensor = self.similarity(self.predict(first), second.detach())
        loss = loss + self.similarity(self.predict(second), first.detach())
        return loss / 2


class VICReg(Method):
    """Bardes, Ponce & LeCun 2022: the views' projections alike, each dimension of them spread, no two dimensions the same."""

    def __init__(self, network: nn.Module) -> None:
        from lightly.loss import VICRegLoss
        from lightly.models.modules.heads import VICRegProjectionHead

        super().__init__()
        self.project = VICRegProjectionHead(WIDTH, 2 * WIDTH, 2 * WIDTH)
        self.loss = VICRegLoss()

    def forward(self, embed: Embed, network: nn.Module, views: Tensor) -> Tensor:
        loss: Tensor = self.loss(*map(self.project, embed(network, views)))
        return loss


class DINO(Method):
    """Caron et al. 2021: the network finds in a view the prototypes that its own moving average finds in the other view."""

    PROTOTYPES: Final = 1024
    DECAY: Final = 0.99

    def __init__(self, network: nn.Module) -> None:
        from lightly.loss import DINOLoss
        from lightly.models.modules.heads import DINOProjectionHead

        super().__init__()
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.head = DINOProjectionHead(WIDTH, WIDTH, WIDTH // 4, self.PROTOTYPES, batch_norm=True)
        self.teacher_head = DINOProjectionHead(WIDTH, WIDTH, WIDTH // 4, self.PROTOTYPES, batch_norm=True)
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher_head.requires_grad_(False)
        self.loss = DINOLoss(self.PROTOTYPES)

    def forward(self, embed: Embed, network: nn.Module, views: Tensor) -> Tensor:
        with torch.no_grad():
            targets = [self.teacher_head(part) for part in embed(self.teacher, views)]
        loss: Tensor = self.loss(targets, [self.head(part) for part in embed(network, views)])
        return loss

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move the teacher a little towards the network."""
        for teacher, student in ((self.teacher, network), (self.teacher_head, self.head)):
            for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
                old.lerp_(new, 1 - self.DECAY)


METHODS: Final[dict[str, Callable[[nn.Module], Method]]] = {"simsiam": SimSiam, "vicreg": VICReg, "dino": DINO}


class Pretraining:
    """One pre-training on the `cells` of a pool. `fit` does the work; its state is in a checkpoint at `path` meanwhile."""

    def __init__(self, params: Params, cells: UnlabelledCells, path: Path) -> None:
        """Raises WbcError for a pool that does not fill a batch."""
        self.params, self.cells, self.path = params, cells, path
        size, train = params.size, params.train
        if len(cells.sha256s) < size.batch_size:
            raise WbcError(
                f"train.pretraining: the pool has {counted(len(cells.sha256s), 'cell')}, at least {size.batch_size} are needed"
            )
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as in training
        self.device = Fabric(devices=1).device
        torch.manual_seed(params.seed)
        network = AttentionResNet18(params.model.attention, lossnet=False, norm=params.model.norm)
        if params.model.init_weights:
            load_imagenet(network, Path(params.model.init_weights))
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.method = METHODS[train.pretraining](self.network).to(self.device)
        learnt = [p for part in (self.network, self.method) for p in part.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(learnt, lr=train.learning_rate, weight_decay=WEIGHT_DECAY, fused=True)
        self.plan = BatchPlan(len(cells.sha256s), size.batch_size, 0, 1, params.seed)
        self.key = pretraining_key(params, cells)
        self.update = 0

    def _embed(self, network: nn.Module, views: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, 512) float32 of the first and of the second half of `views` (2 N, 3, S, S)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.params.size.precision == "bf16-mixed"):
            embedding: Tensor = network(views).embedding
        first, second = embedding.float().chunk(2)
        return first, second

    def step(self, update: int) -> float:
        """One update; returns the loss."""
        train, seed = self.params.train, self.params.seed
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(update, train.pretraining_updates, train.learning_rate)
        images = torch.from_numpy(self.cells.images(self.plan.regular(update))).to(self.device)
        generator = seeded(seed, 9, update)
        strong = torch.rand(2 * len(images), generator=generator) < STRONG_SHARE
        views = augment(torch.cat([images, images]), strong, generator)
        loss: Tensor = self.method(self._embed, self.network, views)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.method.follow(self.network)
        return float(loss.detach())

    def fit(self) -> dict[str, Tensor]:
        """Train to the end; returns the weights that a training is to begin with. Raises WbcError where the embedding has
        collapsed, so that every cell looks alike to it."""
        self._resume()
        self.network.train()
        updates, saved = self.params.train.pretraining_updates, time.monotonic()
        with tqdm(total=updates, initial=self.update, desc="pre-train", unit="update", disable=None, leave=False) as bar:
            while self.update < updates:
                loss = self.step(self.update)
                self.update += 1
                bar.update()
                if self.update % 10 == 0:
                    bar.set_postfix(loss=f"{loss:.3f}")
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._save()
                    saved = time.monotonic()
        if self.spread() < COLLAPSED:
            method = self.params.train.pretraining
            raise WbcError(f"train.pretraining: {method} has collapsed: all cells look alike to it; take another method")
        state = self.network.state_dict()
        kept = {name: value for name, value in state.items() if not name.startswith(HEADS)}
        return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in kept.items()}

    @torch.no_grad()
    def spread(self) -> float:
        """How far the embeddings of some cells point into different directions: 0 all into one, 1 anywhere (Chen & He 2021,
        section 4.1)."""
        images = torch.from_numpy(self.cells.images(torch.arange(min(256, len(self.cells.sha256s))))).to(self.device)
        self.network.eval()
        first, second = self._embed(self.network, images.permute(0, 3, 1, 2).float() / 255)
        self.network.train()
        return float(F.normalize(torch.cat([first, second])).std(dim=0).mean() * WIDTH**0.5)

    def _save(self) -> None:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"method.{name}": value for name, value in self.method.state_dict().items()}
        tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        Checkpoint(self.key, tensors, {"update": self.update}).write(self.path)

    def _resume(self) -> None:
        checkpoint = read_checkpoint(self.path, self.key)
        if checkpoint is None:
            return
        self.network.load_state_dict(checkpoint.part("network"))
        self.method.load_state_dict(checkpoint.part("method"))
        load_optimizer(self.optimizer, checkpoint.part("optimizer"))
        self.update = checkpoint.facts["update"]


def pretraining_key(params: Params, cells: UnlabelledCells) -> str:
    """A hash of all that the weights of a pre-training depend on."""
    train = params.train
    parts: list[Any] = [params.seed, params.size.model_dump(), params.model.model_dump(), list(cells.sha256s)]
    parts += [train.pretraining, train.pretraining_updates, train.learning_rate]
    digest = hashlib.sha256(json.dumps([torch.__version__, *parts]).encode())
    digest.update(code_version(Pretraining).encode())
    weights = params.model.init_weights
    if weights and Path(weights).is_file():  # one that is missing is named when it is loaded
        digest.update(Path(weights).read_bytes())
    return digest.hexdigest()


def pretrained(params: Params, cells: UnlabelledCells, cache: Path) -> dict[str, Tensor] | None:
    """The weights that a training on these `cells` (the whole training pool, labelled or not) begins with; None where
    `train.pretraining` is none.

    They are kept in the folder `cache` by what they depend on, so that they are made once for all cycles of a pool. Raises
    WbcError as Pretraining does.
    """
    if params.train.pretraining == "none":
        return None
    cells = UnlabelledCells(tuple(sorted(cells.sha256s)), cells.read)
    path = cache / f"{pretraining_key(params, cells)[:24]}.safetensors"
    with locked(cache / "lock"):
        if not path.exists():
            pretraining = Pretraining(params, cells, cache / "checkpoint.safetensors")
            weights = pretraining.fit()
            write_atomic_by(path, lambda temporary: save_file(weights, temporary))
            pretraining.path.unlink(missing_ok=True)
    return load_file(path)
