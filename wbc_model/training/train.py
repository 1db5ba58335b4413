"""Training: labelled cells in, the best weights out.

The method of Jiang et al. 2024: cross-entropy plus LossNet's ranking loss, on batches of active iterative augmentation. Averaged
weights and pseudo-labels from the unlabelled pool are options. Where batches come from (wbc_model/training/batches.py) and which
weights are kept are handed in. Lightning Fabric gives device, precision and DDP. Work is counted in updates, not epochs: a
training costs the same whatever the size of the labelled pool.
"""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from wbc_model.code_version import code_version
from wbc_model.core.errors import WbcError
from wbc_model.network.batch_norm_statistics import statistics_kept
from wbc_model.network.lossnet import ranking_loss
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18, Output, begin_with, load_imagenet
from wbc_model.params import Params
from wbc_model.training.augment import MILD, SITES, augment
from wbc_model.training.batches import Batches, HardSampleBatches, labelled_prior, seeded
from wbc_model.training.checkpoint import (
    CHECKPOINT_SECONDS,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
)
from wbc_model.training.fabric import Fabric
from wbc_model.training.labelled import LabelledCells
from wbc_model.training.pseudo_labels import PseudoLabelling, PseudoLabels, UnlabelledCells
from wbc_model.training.schedule import adamw, averaged, learning_rate
from wbc_model.training.validation import lowest_loss, validation_row

LOSSNET_WEIGHT: Final = 1.0  # λ of Yoo & Kweon 2019
LOSSNET_MARGIN: Final = 1.0  # ξ of Yoo & Kweon 2019
PATIENCE: Final = 0.8  # of the updates, without a better validation loss, after which training stops
ON_DEVICE: Final = 8 * 2**30  # bytes of images that live on a GPU as a whole
KeepRule = Callable[[Mapping[str, float], float], bool]  # of a row of the history and the lowest loss before it


@dataclass
class Progress:
    """What a training has learned so far, beside the weights: restored from a checkpoint as it stands here."""

    update: int = 0
    best_update: int = 0
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """One training run. `fit` does the work; the state between two validation steps is in a checkpoint."""

    def __init__(
        self,
        params: Params,
        batches: Batches,
        validation: LabelledCells,
        checkpoint: Path,
        pseudo: PseudoLabelling | None = None,
        start: Mapping[str, Tensor] | None = None,
        keep: KeepRule = lowest_loss,
        *,
        fixed: Sequence[str] = (),
    ) -> None:
        """`start` are weights to begin with instead of random ones or those of `model.init_weights` (`begin_with`); those of the
        modules `fixed` stay so. Raises WbcError for weights of another network, and for devices that do not share a batch."""
        self.params, self.batches, self.validation, self.path = params, batches, validation, checkpoint
        self.pseudo, self.keep, self.fabric = pseudo, keep, fabric_of(params)
        self.network = first_network(params, start, fixed)
        self.averaged = averaged(self.network, params.train.ema) if params.train.ema else None
        self.module, self.optimizer = self.fabric.setup(self.network, adamw(self.network, params.train.learning_rate))
        self.evaluated = evaluated(self.network, self.averaged).to(self.fabric.device)
        self.images = self._on_device(torch.from_numpy(batches.cells.images))
        self.prior = params.train.logit_adjustment * labelled_prior(batches)
        self.best: dict[str, Tensor] = {}
        self.progress, self.saved_at = Progress(), time.monotonic()
        self.key = training_key(params, batches, validation, pseudo, start, fixed)

    @classmethod
    def of_pools(
        cls,
        params: Params,
        labelled: LabelledCells,
        validation: LabelledCells,
        checkpoint: Path,
        unlabelled: UnlabelledCells | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> "Training":
        """The method on the pools of a workspace. `unlabelled` is needed where `train.unlabelled_ratio` is above 0; it may be
        empty. Raises WbcError as the constructor does."""
        if params.train.unlabelled_ratio and unlabelled is None:
            raise WbcError("train.unlabelled_ratio is above 0, but the training was given no unlabelled pool")
        wanted = params.train.unlabelled_ratio and unlabelled and unlabelled.sha256s
        pseudo = PseudoLabelling(unlabelled, params) if wanted and unlabelled else None
        return cls(params, HardSampleBatches(labelled, params), validation, checkpoint, pseudo, start)

    def fit(
        self,
        report: Callable[[dict[str, float]], None] = lambda row: None,
        updated: Callable[[int], None] = lambda update: None,
    ) -> AttentionResNet18:
        """Train to the end and return the network with the best weights. `report` receives each row of the history, `updated` the
        number of updates after each of them."""
        self.resume()
        self.network.train()
        if not self.progress.update:
            self.choose_pseudo_labels(0)
        updates, every = self.params.size.updates, self.params.train.eval_every
        quiet = None if self.fabric.is_global_zero else True  # None: shown on a terminal only
        with tqdm(total=updates, initial=self.progress.update, desc="train", unit="update", disable=quiet, leave=False) as bar:
            while self.progress.update < updates and not self.stopped_early():
                end = min(updates, (self.progress.update // every + 1) * every)
                start = time.perf_counter()
                for update in range(self.progress.update, end):
                    self.step(update)
                    bar.update()
                    updated(update + 1)
                self.validation_step(end, time.perf_counter() - start)
                self.save()
                report(self.progress.history[-1])
                bar.set_postfix(macro_f1=f"{self.progress.history[-1]['validation_macro_f1']:.3f}")
        self.network.load_state_dict(self.best)
        return self.network

    def step(self, update: int) -> None:
        """One update of the weights; notes the loss of each labelled sample."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(update, self.params.size.updates, self.params.train.learning_rate)
        images, labels, index = self.labelled_batch(update)
        more, pseudo = self.pseudo_batch(update)
        output = self.forward(torch.cat([images, more]), self.batches.normalised_apart(index, len(more)), update)
        logits, guessed = torch.split(output.logits.float(), [len(labels), len(pseudo)])
        each = F.cross_entropy(logits + self.prior.to(logits), labels, reduction="none")
        loss = each.mean()
        if self.network.lossnet is not None:
            loss = loss + LOSSNET_WEIGHT * ranking_loss(output.predicted_loss[: len(labels)], each, LOSSNET_MARGIN)
        if self.pseudo is not None and len(pseudo):
            loss = loss + F.cross_entropy(guessed + self.pseudo.prior.to(guessed), pseudo)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)
        self.batches.note(self._of_all_ranks(index.to(each.device)).cpu(), self._of_all_ranks(each.detach()).float().cpu())

    def validation_step(self, update: int, seconds: float) -> None:
        """Evaluate on the validation pool, keep the best weights, choose hard samples and pseudo-labels anew."""
        row = self._history_row(update, seconds)
        self.progress.history.append(row)
        self.progress.update = update
        if self.keep(row, self.progress.best_loss):
            self.progress.best_loss, self.progress.best_update = row["validation_loss"], update
            self.best = {name: value.detach().cpu().clone() for name, value in self.evaluated.state_dict().items()}
        self.batches.choose_again()
        self.choose_pseudo_labels(update)

    def choose_pseudo_labels(self, update: int) -> None:
        """Choose the pseudo-labels anew where it is late enough: where they are all that is learned of a site, from the start."""
        if self.pseudo is not None and self.pseudo.due(update):
            first = self.fabric.is_global_zero  # the others' choice would not be used
            chosen = self.pseudo.choose(self.evaluated, self.prior, update) if first else self.pseudo.chosen
            self.pseudo.use(self.fabric.broadcast(chosen))

    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for a share of the updates. Not for a number of them: before the learning
        rate falls, a long training finds nothing better for long."""
        return self.progress.update - self.progress.best_update >= PATIENCE * self.params.size.updates

    def labelled_batch(self, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """This device's part of the batch: augmented images, labels on the device, and indices into the labelled pool."""
        rank, device = self.fabric.global_rank, self.fabric.device
        index, strong = self.batches.draw(update).of_rank(rank, self.fabric.world_size)
        images = self.images[index.to(self.images.device)].to(device)
        generator = seeded(self.params.seed, 3, update, rank)
        elsewhere = self.batches.shown_elsewhere(len(index))
        parts = [(slice(elsewhere), SITES), (slice(elsewhere, None), MILD)]
        shown = [augment(images[part], strong[part], generator, strength) for part, strength in parts if len(index[part])]
        return torch.cat(shown), self.batches.labels[index].to(device), index

    def pseudo_batch(self, update: int) -> tuple[Tensor, Tensor]:
        """This device's unlabelled images, strongly augmented, and their pseudo-labels; none while there are none."""
        rank, device, size = self.fabric.global_rank, self.fabric.device, self.params.size.image_size
        index = torch.empty(0, dtype=torch.int64) if self.pseudo is None else self.pseudo.draw(update)
        if self.pseudo is None or not len(index):
            return torch.empty((0, 3, size, size), device=device), index.to(device)
        index = index[rank :: self.fabric.world_size]
        images = torch.from_numpy(self.pseudo.cells.images(index)).to(device)
        images = augment(images, torch.ones(len(index), dtype=torch.bool), seeded(self.params.seed, 7, update, rank))
        return images, self.pseudo.chosen.labels[index].to(device)

    def forward(self, images: Tensor, parts: list[Tensor], update: int) -> Output:
        """The network's output for a batch, each of its `parts` by itself. The first one's statistics are the network's."""
        gradient = update < self.params.train.lossnet_gradient_share * self.params.size.updates
        images = images.contiguous(memory_format=torch.channels_last)
        if len(parts) == 1:
            whole: Output = self.module(images, lossnet_gradient=gradient)
            return whole
        outputs = [self.module(images[parts[0].to(images.device)], lossnet_gradient=gradient)]
        with statistics_kept(self.network):
            outputs += [self.module(images[part.to(images.device)], lossnet_gradient=gradient) for part in parts[1:]]
        back = torch.argsort(torch.cat(parts)).to(images.device)
        return Output(*(torch.cat(column)[back] for column in zip(*outputs, strict=True)))

    def _history_row(self, update: int, seconds: float) -> dict[str, float]:
        seen_losses = self.batches.losses[~self.batches.losses.isnan()]
        row = {
            "update": update,
            "epoch": self.batches.plan.epoch(update),
            "train_loss": float(seen_losses.mean()) if len(seen_losses) else math.nan,
            **self.validate(),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "images_per_second": self.params.size.batch_size * self.params.train.eval_every / seconds if seconds else 0.0,
        }
        if self.network.lossnet is None:
            del row["ranking_accuracy"], row["predicted_loss_spread"]
        return row

    def validate(self) -> dict[str, float]:
        """Rank zero's numbers on the validation pool, for all ranks: batch norm has different statistics on every rank, and the
        ranks must agree on when to stop and on which weights are the best."""
        row: dict[str, float] = {}
        if self.fabric.is_global_zero:
            autocast = self.params.size.precision == "bf16-mixed"
            row = validation_row(predict(self.evaluated, self.validation.batches(), autocast=autocast), self.validation.labels)
        return self.fabric.broadcast(row)

    def _on_device(self, images: Tensor) -> Tensor:
        fits = self.fabric.device.type != "cpu" and images.nbytes < ON_DEVICE
        return images.to(self.fabric.device) if fits else images

    def _of_all_ranks(self, mine: Tensor) -> Tensor:
        """The whole batch's values (batch,) from each rank's part of them, in the order of the batch."""
        if self.fabric.world_size == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(parts, mine.contiguous())
        return torch.stack(parts, dim=1).flatten()  # a rank has every world_size-th sample

    def save(self) -> None:
        """Write the checkpoint when the last one is old enough (rank zero only)."""
        if not self.fabric.is_global_zero or time.monotonic() - self.saved_at < CHECKPOINT_SECONDS:
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {"batches.losses": self.batches.losses, "batches.weights": self.batches.weights}
        if self.pseudo is not None:
            tensors |= {f"pseudo.{k}": v for k, v in self.pseudo.chosen._asdict().items()}
        if self.averaged is not None:
            tensors |= {f"averaged.{k}": v for k, v in self.averaged.state_dict().items()}
        Checkpoint(self.key, tensors, dataclasses.asdict(self.progress)).write(self.path)
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the checkpoint of the same training, where there is one."""
        checkpoint = read_checkpoint(self.path, self.key)
        if checkpoint is None:
            return
        self.network.load_state_dict(checkpoint.part("network"))
        load_optimizer(self.optimizer, checkpoint.part("optimizer"))
        self.best = checkpoint.part("best")
        state = checkpoint.part("batches")
        self.batches.losses, self.batches.weights = state["losses"], state["weights"]
        if self.pseudo is not None:
            self.pseudo.use(PseudoLabels(**checkpoint.part("pseudo")))
        if self.averaged is not None:
            self.averaged.load_state_dict(checkpoint.part("averaged"))
        self.progress = Progress(**checkpoint.facts)


def fabric_of(params: Params) -> Fabric:
    """Device, precision and number of processes, launched. Raises WbcError where the devices do not share a batch evenly."""
    size, train = params.size, params.train
    if size.batch_size % train.devices:
        raise WbcError(f"params.yaml: batch_size {size.batch_size} does not divide by train.devices {train.devices}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this
    torch.use_deterministic_algorithms(True)
    # Filling new memory is a search for faults: everything is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    fabric = Fabric(
        devices=train.devices,
        precision=size.precision,
        strategy="ddp" if train.devices > 1 else "auto",
    )
    if train.devices > 1:
        fabric.launch()
    return fabric


def first_network(params: Params, start: Mapping[str, Tensor] | None = None, fixed: Sequence[str] = ()) -> AttentionResNet18:
    """The network before the first update: random by the seed, with the weights of `model.init_weights` or `start` on top. The
    modules `fixed` have no gradient. Where they are the first ones, nothing is computed or kept for their backward pass."""
    torch.manual_seed(params.seed)
    network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm)
    if params.model.init_weights:
        load_imagenet(network, Path(params.model.init_weights))
    if start is not None:
        begin_with(network, start)
    for name in fixed:
        network.get_submodule(name).requires_grad_(False)
    network.to(memory_format=torch.channels_last)
    return network


def evaluated(network: AttentionResNet18, average: AveragedModel | None) -> AttentionResNet18:
    """The network that is validated and kept: the averaged one where weights are averaged."""
    return network if average is None else cast(AttentionResNet18, average.module)


def training_key(
    params: Params,
    batches: Batches,
    validation: LabelledCells,
    pseudo: PseudoLabelling | None,
    start: Mapping[str, Tensor] | None,
    fixed: Sequence[str] = (),
) -> str:
    """What a checkpoint must have been made from to be gone on with."""
    digest = hashlib.sha256()
    parts: list[Any] = [torch.__version__, params.seed, params.size.model_dump(), params.model.model_dump()]
    parts += [params.train.model_dump(), batches.facts(), list(validation.sha256s), validation.labels.tolist()]
    parts.append([] if pseudo is None else [pseudo.first, pseudo.by_class, list(pseudo.cells.sha256s)])
    parts.append(list(fixed))
    for name, value in sorted((start or {}).items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    if params.model.init_weights:
        digest.update(Path(params.model.init_weights).read_bytes())
    digest.update((code_version(Training) + code_version(type(batches))).encode())
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()
