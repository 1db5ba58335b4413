"""Training: labelled cells in, a calibrated model directory out.

The method of Jiang et al. 2024: cross-entropy plus LossNet's ranking loss, and active iterative augmentation; as options
averaged weights and pseudo-labels from the unlabelled pool (wbc_model/training/pseudo_labels.py). Lightning Fabric gives
device, precision and DDP. Work is counted in updates, not epochs, so that a training costs the same whatever the size of the
labelled pool.
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
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from wbc_model.cells.decoded import DecodedCells
from wbc_model.code_version import code_version
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.calibrate import calibrated_temperature, conformal_threshold, fit_out_of_distribution
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.network.batch_norm_statistics import MIN_CELLS, some_cells, takes_statistics, with_statistics_of
from wbc_model.network.lossnet import ranking_accuracy, ranking_loss
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18, Output, begin_with, load_imagenet
from wbc_model.params import Params
from wbc_model.training.augment import REGULAR, augment
from wbc_model.training.checkpoint import Checkpoint, load_optimizer, optimizer_tensors, read_checkpoint
from wbc_model.training.fabric import Fabric
from wbc_model.training.hard_samples import BatchPlan, hard_sample_weights, seeded
from wbc_model.training.pseudo_labels import PRIOR_SHARE, Averaged, PseudoLabels, UnlabelledCells, candidates, choose

COVERAGE: Final = 0.95
VALIDATION_BATCH: Final = 128
CHECKPOINT_SECONDS: Final = 60.0  # a checkpoint is four times the weights: not after every look


@dataclass(frozen=True)
class LabelledCells:
    """Decoded cells and their class indices: `images` uint8 (N, S, S, 3), `labels` int64 (N,), `sha256s` in the same order."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sha256s: tuple[str, ...]

    @classmethod
    def load(cls, decoded: DecodedCells, sha256s: Sequence[str], labels: Sequence[str]) -> "LabelledCells":
        indices = np.array([CLASS_INDEX[label] for label in labels], dtype=np.int64)
        return cls(decoded.read(sha256s), indices, tuple(sha256s))

    def batches(self) -> list[NDArray[np.uint8]]:
        return [self.images[i : i + VALIDATION_BATCH] for i in range(0, len(self.images), VALIDATION_BATCH)]


def learning_rate(update: int, updates: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth of the peak."""
    warmup = max(1, round(warmup_share * updates))
    if update < warmup:
        return peak * (update + 1) / warmup
    progress = (update - warmup) / max(1, updates - warmup)
    return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def log_prior(count: Tensor) -> Tensor:
    """Logarithms of the class shares, (classes,) float32, from counts or weights; a class with less than one in a thousand
    counts as that much. Zeros where nothing was counted.

    Added to the logits in the loss, the network learns what each class looks like rather than how frequent it is: logit
    adjustment, Menon et al. 2021. Without it, it would rather not name a class of which it has seen three.
    """
    if not count.any():
        return torch.zeros(len(count))
    return (count.double() / count.sum()).clamp_min(1e-3).log().float()


def update_with_weights(digest: "hashlib._Hash", weights: Mapping[str, Tensor]) -> None:
    """Take the names and the bytes of weights into a digest."""
    for name, value in sorted(weights.items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())


@dataclass
class Progress:
    """What a training has learned so far, beside the weights: restored from a checkpoint as it stands here."""

    update: int = 0
    best_update: int = 0
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Adaptation:
    """What makes a training one that goes on from a trained network to a new site: its `weights`, and which of the labelled
    cells are the new site's, `focus` (N,) bool. They are what the hard part of a batch is drawn from.

    Weights are the same for both sites, batch statistics are not: each site's part of a batch is normalised by itself, and
    whoever uses the network measures its statistics at the site (wbc_model/network/batch_norm_statistics.py). The validation pool
    is the old site's and would choose the weights that have moved the least: the last ones are kept.
    """

    weights: dict[str, Tensor]
    focus: NDArray[np.bool_]


class Training:
    """One training run. `fit` does the work; the state between two looks at the validation pool is in a checkpoint."""

    def __init__(
        self,
        params: Params,
        labelled: LabelledCells,
        validation: LabelledCells,
        checkpoint: Path,
        unlabelled: UnlabelledCells | None = None,
        adapt: Adaptation | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`unlabelled` is used where `train.unlabelled_ratio` is above 0, and is needed there; it may be empty. With `adapt` a
        trained network is taken on to a new site. `start` are weights to begin with instead of random ones or those of
        `model.init_weights`; a head that they lack begins as it would without them."""
        self.params, self.labelled, self.validation, self.path = params, labelled, validation, checkpoint
        self.adapt, self.start = adapt, start
        size, train = params.size, params.train
        if train.unlabelled_ratio and unlabelled is None:
            raise WbcError("train.unlabelled_ratio is above 0, but the training was given no unlabelled pool")
        self.unlabelled = unlabelled if train.unlabelled_ratio and unlabelled and unlabelled.sha256s else None
        if params.model.norm == "frozen" and not (params.model.init_weights or adapt or start):
            lacks = "model.norm is frozen, but the training begins with no weights that have statistics"
            raise WbcError(f"{lacks}: give them by model.init_weights or train.pretraining, or set model.norm to batch")
        if size.batch_size % train.devices:
            raise WbcError(f"params.yaml: batch_size {size.batch_size} does not divide by train.devices {train.devices}")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its results only with this
        torch.use_deterministic_algorithms(True)
        self.fabric = Fabric(
            accelerator=train.accelerator,
            devices=train.devices,
            precision=size.precision,
            strategy="ddp" if train.devices > 1 else "auto",
        )
        if train.devices > 1:
            self.fabric.launch()
        torch.manual_seed(params.seed)
        self.network = AttentionResNet18(params.model.attention, params.model.lossnet, norm=params.model.norm)
        if params.model.init_weights:
            load_imagenet(self.network, Path(params.model.init_weights))
        if start is not None:
            begin_with(self.network, start)
        self.network.to(memory_format=torch.channels_last)
        if adapt is not None:
            self.network.load_state_dict(adapt.weights)
        self.averaged = Averaged(self.network, train.ema) if train.ema else None
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
        )
        self.module, self.optimizer = self.fabric.setup(self.network, optimizer)
        if self.averaged is not None:
            self.averaged.network.to(self.fabric.device)
        self.images = torch.from_numpy(labelled.images)
        self.labels = torch.from_numpy(labelled.labels)
        if self.fabric.device.type != "cpu" and self.images.nbytes < 8 * 2**30:
            self.images = self.images.to(self.fabric.device)  # the whole labelled pool lives on the device
        self.prior = train.logit_adjustment * log_prior(torch.bincount(self.labels, minlength=len(CLASSES))).to(
            self.fabric.device
        )
        self.pseudo_prior = torch.zeros_like(self.prior)
        self.losses = torch.full((len(labelled.labels),), math.nan)
        self.weights = self._hard_weights()
        self.pseudo = PseudoLabels.none(len(self.unlabelled.sha256s) if self.unlabelled else 0)
        self.best: dict[str, Tensor] = {}
        self.progress = Progress()
        self.plan = BatchPlan(
            len(labelled.labels),
            size.batch_size,
            train.devices * round(train.hard_share * size.batch_size / train.devices),  # ranks have equal parts
            max(round(train.hard_start_share * size.updates), 1),
            params.seed,
        )
        self.key = self._key()
        self.saved_at = time.monotonic()

    def _key(self) -> str:
        """What a checkpoint must have been made from to be gone on with."""
        digest = hashlib.sha256()
        parts: list[Any] = [self.params.seed, self.params.size.model_dump(), self.params.model.model_dump()]
        parts.append(self.params.train.model_dump())
        for cells in (self.labelled, self.validation):
            parts += [list(cells.sha256s), cells.labels.tolist()]
        if self.unlabelled is not None:
            parts.append(list(self.unlabelled.sha256s))
        if self.adapt is not None:
            parts.append(self.adapt.focus.tolist())
            update_with_weights(digest, self.adapt.weights)
        if self.start is not None:
            parts.append("start")
            update_with_weights(digest, self.start)
        weights = self.params.model.init_weights
        if weights:
            digest.update(Path(weights).read_bytes())
        digest.update(code_version(Training).encode())
        digest.update(json.dumps([torch.__version__, *parts]).encode())
        return digest.hexdigest()

    def batch(self, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """This rank's part of the batch: augmented images, labels on the device, and indices into the labelled pool."""
        regular, hard = self.plan.regular(update), self.plan.hard(update, self.weights)
        index = torch.cat([regular, hard])
        strong = torch.arange(len(index)) >= len(regular)
        strong |= torch.rand(len(index), generator=seeded(self.params.seed, 8, update)) < self.params.train.strong_share
        mine = slice(self.fabric.global_rank, None, self.fabric.world_size)
        index, strong = index[mine], strong[mine]
        images = self.images[index.to(self.images.device)].to(self.fabric.device)
        images = augment(
            images, strong, seeded(self.params.seed, 3, update, self.fabric.global_rank), REGULAR[self.params.train.augmentation]
        )
        return images, self.labels[index].to(self.fabric.device), index

    @property
    def pseudo_count(self) -> int:
        """Unlabelled images of a batch, over all ranks."""
        share = self.params.train.unlabelled_ratio * self.params.size.batch_size
        return self.params.train.devices * round(share / self.params.train.devices)

    def pseudo_batch(self, update: int) -> tuple[Tensor, Tensor]:
        """This rank's unlabelled images, strongly augmented, and their pseudo-labels; none while the network is sure of none."""
        assert self.unlabelled is not None  # noqa: S101
        rank, device = self.fabric.global_rank, self.fabric.device
        index = torch.multinomial(
            self.pseudo.weights, self.pseudo_count, replacement=True, generator=seeded(self.params.seed, 6, update)
        )[rank :: self.fabric.world_size]
        images = torch.from_numpy(self.unlabelled.images(index)).to(device)
        strong = torch.ones(len(index), dtype=torch.bool)
        images = augment(images, strong, seeded(self.params.seed, 7, update, rank))
        return images, self.pseudo.labels[index].to(device)

    def step(self, update: int) -> None:
        """One update of the weights; notes the loss of each labelled sample."""
        size, train = self.params.size, self.params.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(update, size.updates, train.learning_rate, train.warmup_share)
        images, labels, index = self.batch(update)
        pseudo = torch.empty(0, dtype=torch.int64, device=labels.device)
        if self.pseudo.weights.any():
            more, pseudo = self.pseudo_batch(update)
            images = torch.cat([images, more]).contiguous(memory_format=torch.channels_last)
        output = self._forward(images, index, gradient=update < train.lossnet_gradient_share * size.updates)
        logits = output.logits.float()
        each = F.cross_entropy(
            logits[: len(labels)] + self.prior, labels, reduction="none", label_smoothing=train.label_smoothing
        )
        loss = each.mean()
        if self.network.lossnet is not None:
            loss = loss + train.lossnet_weight * ranking_loss(output.predicted_loss[: len(labels)], each, train.lossnet_margin)
        if len(pseudo):
            loss = loss + F.cross_entropy(logits[len(labels) :] + self.pseudo_prior, pseudo)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.follow(self.network, update)
        self._note_losses(index, each.detach())

    def _forward(self, images: Tensor, index: Tensor, gradient: bool) -> Output:
        """The network's output for a batch: labelled images at `index`, then pseudo-labelled ones. On a new site the images of
        each site by themselves, so that batch normalisation does not mix them, unless one has too few for a variance."""
        new = torch.ones(len(images), dtype=torch.bool)
        if self.adapt is not None:
            new[: len(index)] = torch.from_numpy(self.adapt.focus)[index]
        if self.adapt is None or min(int(new.sum()), int((~new).sum())) < 2:
            output: Output = self.module(images, lossnet_gradient=gradient)
            return output
        places = [part.nonzero().squeeze(1).to(images.device) for part in (~new, new)]
        outputs = [self.module(images[place], lossnet_gradient=gradient) for place in places]
        back = torch.argsort(torch.cat(places))
        return Output(*(torch.cat(column)[back] for column in zip(*outputs, strict=True)))

    def _note_losses(self, index: Tensor, each: Tensor) -> None:
        index, each = self._of_all_ranks(index.to(self.fabric.device)), self._of_all_ranks(each)
        self.losses[index.cpu()] = each.float().cpu()

    def _of_all_ranks(self, mine: Tensor) -> Tensor:
        """The whole batch's values (batch,) from each rank's part of them, in the order of the batch."""
        if self.fabric.world_size == 1:
            return mine
        parts = [torch.empty_like(mine) for _ in range(self.fabric.world_size)]
        torch.distributed.all_gather(parts, mine.contiguous())
        return torch.stack(parts, dim=1).flatten()  # a rank has every world_size-th sample

    def look(self, update: int, seconds: float) -> None:
        """Evaluate on the validation pool, keep the best weights, choose the hard samples anew."""
        train = self.params.train
        row = self._validate()
        seen_losses = self.losses[~self.losses.isnan()]
        row = {
            "update": update,
            "epoch": self.plan.epoch(update),
            "train_loss": float(seen_losses.mean()) if len(seen_losses) else math.nan,
            **row,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "images_per_second": self.params.size.batch_size * train.eval_every / seconds if seconds else 0.0,
        }
        if self.network.lossnet is None:
            del row["ranking_accuracy"], row["predicted_loss_spread"]
        self.progress.history.append(row)
        if self.adapt is not None or row["validation_loss"] < self.progress.best_loss:
            self.progress.best_loss, self.progress.best_update = row["validation_loss"], update
            self.best = {name: value.detach().cpu().clone() for name, value in self.evaluated.state_dict().items()}
        self.weights = self._hard_weights()
        if self.unlabelled is not None and update >= train.unlabelled_start_share * self.params.size.updates:
            self._use(self.fabric.broadcast(self._choose_pseudo_labels(self.unlabelled, update)))

    def _hard_weights(self) -> Tensor:
        """The weights with which labelled cells are drawn again: the hard ones or, on a new site, all of its cells."""
        train = self.params.train
        if self.adapt is None:
            return hard_sample_weights(self.losses, self.labels, train.hard_fraction, train.rarity)
        focus = torch.from_numpy(self.adapt.focus)
        count = torch.bincount(self.labels[focus], minlength=len(CLASSES)).clamp_min(1)
        return torch.where(focus, count[self.labels].float() ** -train.rarity, torch.zeros(()))

    @property
    def evaluated(self) -> AttentionResNet18:
        """The network that is looked at and kept: the averaged one where weights are averaged."""
        return self.network if self.averaged is None else self.averaged.network

    @property
    def autocast(self) -> bool:
        return self.params.size.precision == "bf16-mixed"

    def _use(self, pseudo: PseudoLabels) -> None:
        """Draw from these pseudo-labels from now on."""
        self.pseudo = pseudo
        drawn = torch.bincount(pseudo.labels, weights=pseudo.weights.double(), minlength=len(CLASSES))
        self.pseudo_prior = (self.params.train.logit_adjustment * log_prior(drawn)).to(self.prior)

    def _choose_pseudo_labels(self, unlabelled: UnlabelledCells, update: int) -> PseudoLabels:
        """Rank zero's choice; what the other ranks return is not used. Of a large pool no more cells are valued than can be
        drawn twice over before the next look."""
        train, cells = self.params.train, len(unlabelled.sha256s)
        chosen = PseudoLabels.none(cells)
        if self.fabric.is_global_zero:
            index = candidates(cells, 2 * train.eval_every * self.pseudo_count, self.params.seed, update)
            network = self.evaluated
            if self.adapt is not None and takes_statistics(network) and cells >= MIN_CELLS:
                network = with_statistics_of(network, unlabelled.images(torch.from_numpy(some_cells(cells, self.params.seed))))
            seen = predict(network, unlabelled.batches(index), autocast=self.autocast)
            # The pool has its classes in about the labelled pool's shares, which a logit-adjusted network leaves out.
            logits = seen.logits + PRIOR_SHARE * self.prior.cpu().numpy()
            some = choose(torch.from_numpy(softmax(logits)), train.pseudo_label_threshold, train.rarity)
            chosen.labels[index], chosen.weights[index] = some
        return chosen

    def _validate(self) -> dict[str, float]:
        """Rank zero's numbers on the validation pool, for all ranks: batch norm has other statistics on every rank, and the
        ranks must agree on when to stop and on which weights are the best."""
        row: dict[str, float] = {}
        if self.fabric.is_global_zero:
            seen = predict(self.evaluated, self.validation.batches(), autocast=self.autocast)
            row = validation_row(seen, self.validation.labels)
        return self.fabric.broadcast(row)

    def save(self) -> None:
        """Write the checkpoint when the last one is old enough (rank zero only)."""
        if not self.fabric.is_global_zero or time.monotonic() - self.saved_at < CHECKPOINT_SECONDS:
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"optimizer.{k}": v for k, v in optimizer_tensors(self.optimizer).items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {"losses": self.losses, "weights": self.weights}
        tensors |= {f"pseudo.{k}": v for k, v in self.pseudo._asdict().items()}
        if self.averaged is not None:
            tensors |= {f"averaged.{k}": v for k, v in self.averaged.network.state_dict().items()}
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
        self.losses, self.weights = checkpoint.tensors["losses"], checkpoint.tensors["weights"]
        self._use(PseudoLabels(**checkpoint.part("pseudo")))
        if self.averaged is not None:
            self.averaged.network.load_state_dict(checkpoint.part("averaged"))
        self.progress = Progress(**checkpoint.facts)

    def stopped_early(self) -> bool:
        """Whether the validation loss has not fallen for a share of the updates. Not for a number of them: before the learning
        rate falls, a long training finds nothing better for long."""
        return self.progress.update - self.progress.best_update >= self.params.train.patience * self.params.size.updates

    def fit(self, report: Callable[[dict[str, float]], None] = lambda row: None) -> AttentionResNet18:
        """Train to the end and return the network with the best weights; `report` receives each row of the history."""
        self.resume()
        self.network.train()
        updates, every = self.params.size.updates, self.params.train.eval_every
        quiet = None if self.fabric.is_global_zero else True  # None: shown on a terminal only
        with tqdm(total=updates, initial=self.progress.update, desc="train", unit="update", disable=quiet, leave=False) as bar:
            while self.progress.update < updates and not self.stopped_early():
                end = min(updates, (self.progress.update // every + 1) * every)
                start = time.perf_counter()
                for update in range(self.progress.update, end):
                    self.step(update)
                    bar.update()
                self.look(end, time.perf_counter() - start)
                self.progress.update = end
                self.save()
                report(self.progress.history[-1])
                bar.set_postfix(macro_f1=f"{self.progress.history[-1]['validation_macro_f1']:.3f}")
        self.network.load_state_dict(self.best)
        return self.network


def validation_row(seen: Predictions, labels: NDArray[np.int64]) -> dict[str, float]:
    """Loss, accuracy and macro-F1 on the validation pool, and whether LossNet ranks its losses (0.5 is chance) and spreads."""
    probabilities = softmax(seen.logits)
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12))
    metrics = classification_metrics(probabilities, labels, resamples=0)
    return {
        "validation_loss": float(losses.mean()),
        "validation_accuracy": metrics["accuracy"],
        "validation_macro_f1": metrics["macro_f1"],
        "ranking_accuracy": ranking_accuracy(torch.from_numpy(seen.predicted_loss), torch.from_numpy(losses)),
        "predicted_loss_spread": float(seen.predicted_loss.std()),
    }


def check_trainable(labelled: LabelledCells, validation: LabelledCells) -> None:
    """Raises WbcError when there is too little to learn from or to validate on."""
    if len(np.unique(labelled.labels)) < 2:
        few = f"the labelled pool has {len(labelled.labels)} cells of fewer than two classes"
        raise WbcError(f"{few}: label more cells first (before there is a model, `wbc query --count 30` says which)")
    if len(validation.labels) == 0:
        raise WbcError("the validation pool is empty: training needs it to choose the best weights and to calibrate")


def calibrated_card(
    network: AttentionResNet18, validation: LabelledCells, params: Params, appearance: NDArray[np.float64] | None = None
) -> ModelCard:
    """The card of a trained network: temperature, conformal threshold and metrics from the validation pool, and with the
    `appearance` (N, 7) of its cells its out-of-distribution scores. Where no temperature can be fitted the card says so."""
    seen = predict(network, validation.batches())
    temperature, why_not = calibrated_temperature(seen.logits, validation.labels)
    probabilities = softmax(seen.logits, temperature)
    return ModelCard(
        version="",
        input_size=params.size.image_size,
        view=params.model.view,
        normalisation=Normalisation(mean=MEAN, std=STD),
        architecture=Architecture(attention=params.model.attention, lossnet=params.model.lossnet, norm=params.model.norm),
        temperature=temperature,
        uncalibrated=why_not,
        conformal_coverage=COVERAGE,
        conformal_threshold=conformal_threshold(probabilities, validation.labels, COVERAGE),
        out_of_distribution=None if appearance is None else fit_out_of_distribution(seen, validation.labels, appearance),
        parameters={**params.model_dump(include={"preset", "seed", "model", "train"}), "size": params.size.model_dump()},
        metrics={"validation": classification_metrics(probabilities, validation.labels)},
    )
