"""Onboarding: the champion meets a new site, measures its statistics, asks for the few labels that help most, and is adapted
without forgetting home.

The site gets a workspace of its own in the workspace's folder `sites/NAME` (flows.site). Asking, labelling, training and versions
are those of the active-learning loop. Labels that came with the site's data are the oracle's. Only those that were asked for are
used; the other cells are the test.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from flows.exchange.export import blank_sheet
from flows.exchange.handed_out import hand_out, is_ours
from flows.labels import QUEUE, awaited, import_labels, oracle_answers, read_queue, record, write_queue
from flows.pipeline.dvc import PoolsVersion, check_git, commit_all, tag, version_pools
from flows.pipeline.stages import decoded_cells, seen_before, usable_pools
from flows.progress import Progress, TrainingLines, duration
from flows.registry.champion import FOLDER, followed_for
from flows.site import ADAPTED, REPORT, complete
from flows.state import hold_lock, note_learned, onboarding_round
from flows.workspace import SITES, gone_line
from wbc_model.acquisition.query import Question, query, score_pool
from wbc_model.acquisition.queue import first_query
from wbc_model.cells.conflicts import MACHINES
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.ingest import ingest
from wbc_model.cells.manifest import Source, printable, source_of
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import not_used_lines
from wbc_model.cells.tables import read_table
from wbc_model.choices import Acquisition
from wbc_model.code_version import code_version
from wbc_model.core.cell_filter import CellFilter
from wbc_model.core.classes import CLASS_INDEX, CLASSES
from wbc_model.core.errors import ImageRejected, WbcError, counted
from wbc_model.core.files import write_atomic
from wbc_model.core.model_card import ModelCard, read_card
from wbc_model.core.out_of_distribution import OutOfDistribution
from wbc_model.core.probabilities import softmax
from wbc_model.core.reference import Reference
from wbc_model.evaluation.calibrate import fit_out_of_distribution
from wbc_model.evaluation.metrics import classification_metrics
from wbc_model.evaluation.reference import MOST, measured_reference
from wbc_model.network.batch_norm_statistics import MIN_CELLS, some_cells
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.predict import Predictions, predict
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import Params, read_params
from wbc_model.training.adaptation import FIXED, SiteBatches, at_site, at_site_of, between, largest_step, the_last
from wbc_model.training.labelled import VALIDATION_BATCH, LabelledCells
from wbc_model.training.pseudo_labels import PseudoLabelling, UnlabelledCells
from wbc_model.training.train import Training
from wbc_model.training.validation import calibrated_card

Row = Callable[[dict[str, float]], None]
Updated = Callable[[int], None]
RECOGNISED_BY = 50  # cells of a site's data, of which one is known when it is given again
SHIFT_CELLS = 1000  # of home that the shift is measured against
LATER_STRATEGY: Final[Acquisition] = "badge"  # of the rounds after the first, by the adapted model
SITE_SHARE: Final = 0.3  # of each batch drawn again from the site's labelled cells
PSEUDO_START_SHARE: Final = 0.25  # of the updates before the first pseudo-label
BY_CLASS: Final = "pseudo_thresholds_by_class"  # in an adapted model's card
ASKING_SHARE: Final = 0.5  # of the updates, for a model that only asks: 200 of 400 cost no points (studies/onboard)
PROGRESS_CELLS: Final = 256  # of home that are looked at while the network learns; what is kept is measured on all
LOOK_CELLS: Final = 512  # of home that its statistics are measured on in a look in between; those that are kept on all of them
ESTIMATED_AFTER: Final = 10  # updates: the first are slow
# What differs from the section `train` (decision 015).
ADAPTATION: Final[dict[str, Any]] = {
    "augmentation": "mild",  # of home's cells, which are there to be remembered; the site's are strongly augmented
    "learning_rate": 0.0003,
    "hard_share": 0.0,  # what is drawn again are the site's cells
    "ema": 0.98,
    "unlabelled_ratio": 0.5,  # of the site's unlabelled cells, by pseudo-labels
    "logit_adjustment": 0.0,
    "devices": 1,  # several adaptations follow each other in one process
}


@dataclass(frozen=True)
class Onboarding:
    """What every step needs: the workspace, the site's folder, the champion's directory, the typed parameters."""

    workspace: Path
    site: Path
    champion: Path
    params: Params
    progress: Progress

    @property
    def start(self) -> Path:
        """The champion with the site's statistics: what is known of the site without a label."""
        return self.site / "models/start"

    @property
    def adapted(self) -> Path:
        """The directory of the adapted model, with the site's statistics."""
        return self.site / ADAPTED

    @property
    def home(self) -> Path:
        """The same weights with home's statistics: what adapting has done to the old site."""
        return self.site / "models/home"

    def pools(self) -> Pools:
        return Pools.read(self.site / "data/pools")

    def usable(self) -> Pools:
        """The pools without what people call none of the five classes."""
        pools = self.pools()
        return pools.without(pools.out_of_use())


def champion_of(workspace: Path) -> Path:
    """The champion's model directory, or the candidate's where nothing was promoted; raises WbcError where there is neither."""
    for name in ("champion", "candidate"):
        if (workspace / "models" / name).is_dir():
            return workspace / "models" / name
    raise WbcError("there is no model to adapt: `wbc retrain` makes one")


def adaptation_params(params: Params, card: ModelCard, labels: int, asked: int) -> Params:
    """The parameters of an adaptation with `labels` of the `asked`: training's with ADAPTATION, and the champion's network.
    Raises WbcError for a champion of a kind that is not trained any more."""
    if card.architecture.norm == "frozen":
        raise WbcError("the champion has model.norm: frozen, which went: `wbc retrain` makes one that can be taken to a site")
    size = {
        "updates": max(1, round(_share_of_updates(labels, asked) * params.onboard.train.updates)),
        "image_size": card.input_size,
    }
    architecture = {**card.architecture.model_dump(include={"attention", "lossnet", "norm"}), "view": card.view}
    return params.model_copy(
        update={
            "presets": {**params.presets, params.preset: params.size.model_copy(update=size)},
            "model": params.model.model_copy(update=architecture),
            "train": params.train.model_copy(update=ADAPTATION),
        }
    )


def onboard(
    workspace: Path,
    data: Path | Source,
    labels: int | None,
    answers: Path | None,
    model: Path | None,
    progress: Progress,
    commit: bool = False,
) -> dict[str, Any]:
    """Take the images of a new site in, ask, learn, and report before and after; goes on where it stopped.

    The site's folder is a workspace, with its pools versioned and, with `commit`, committed and tagged. Returns `status`
    `adapted`, the model registered there, or, where people have to label, `waiting` with the path of the queue. Raises WbcError.
    """
    params = read_params(workspace / "params.yaml")
    asked = params.onboard.labels if labels is None else labels
    origin = source_of(data)
    site = workspace / SITES / _site_name(origin)
    refuse_another_site(site, origin)
    for line in filter(None, [followed_for(model or workspace / FOLDER), gone_line(workspace)]):
        progress.say(line)
    ctx = Onboarding(workspace, site, model or champion_of(workspace), params, progress)
    _check_home(workspace)
    complete(workspace, site)
    check_git(site, commit)
    with hold_lock(site, "`wbc onboard`") as lock:
        # People may have answered otherwise than the site's data say: that is listed, and stops nothing.
        report = ingest(
            origin, site / "data", params, site.name, reveal_labels=False, list_conflicts=True, first_query=first_query
        )
        progress.say(f"site {site.name}: {counted(sum(report.pools.values()), 'cell')}")
        for line in not_used_lines(report.rejections):
            progress.say(line)
        _check_cells(ctx, asked)
        refused = _take_answers(ctx, answers) if answers is not None else []
        result: dict[str, Any] = {"site": site.name, "workspace": str(site), "champion": str(ctx.champion)}
        result |= {"refused": report.reasons, "refused_answers": refused, "shift": _look(ctx)}
        have = _learn(ctx, asked)
        version = version_pools(site, (lock,))
        result |= {"labels": have, "pools": version.name}
        result |= _finished(ctx, result, version) if have >= asked else _waits(ctx)
        if commit:
            counts = f"{have} labelled, {len(ctx.pools().frames['unlabelled'])} not"
            commit_all(site, f"{version.name}: site {site.name}, {counts}")
            tag(site, version)
    return result


def _check_home(workspace: Path) -> None:
    """Raises WbcError, before anybody waits, where home lacks cells to learn from, to hold the model by or to measure it on."""
    frames = usable_pools(workspace).frames
    for pool, way_on in (
        ("labelled", "`dvc pull` brings the cells that the champion learned from"),
        ("validation", "`wbc ingest` takes cells in"),
        ("test", "`wbc labels test --draw N` draws cells for it"),
    ):
        if frames[pool].empty:
            raise WbcError(f"the workspace's {pool} pool is empty, and onboarding needs it: {way_on}")


def _check_cells(ctx: Onboarding, asked: int) -> None:
    """Raises WbcError for a site without a cell, or with fewer than are `asked` for, before people label for nothing."""
    frames = ctx.usable().frames
    if not (cells := len(frames["labelled"]) + len(frames["unlabelled"])):
        raise WbcError(
            f"site {ctx.site.name} has no cell that can be used: {ctx.site / 'data/rejected.csv'} says why; "
            "put the data right and type the same again"
        )
    if asked > cells:
        raise _too_few(ctx, asked, cells)


def _too_few(ctx: Onboarding, asked: int, cells: int) -> WbcError:
    asked_for = counted(asked, "label was", "labels were")
    only = counted(cells, "cell")
    return WbcError(f"site {ctx.site.name}: {asked_for} asked for, it has only {only}: `--labels {cells}` asks for all")


def _look(ctx: Onboarding) -> dict[str, Any]:
    """What is known of the site without a label: the champion with its statistics, and the shift, which is returned."""
    if (cells := len(ctx.pools().table())) < MIN_CELLS:
        few = counted(cells, "cell is", "cells are")
        ctx.progress.say(f"{few} too few to measure the site's statistics, {MIN_CELLS} are needed: the model keeps home's")
    _start(ctx)
    shift = _known_shift(ctx)
    ctx.progress.say(f"{shift['far']:.0%} of the cells are unlike any at home; confidence {shift['confidence']['site']:.2f}, "
                     f"at home {shift['confidence']['home']:.2f}")  # fmt: skip
    if (known := shift["recoloured"]) is not None:
        ctx.progress.say(
            f"home's validation cells: balanced accuracy {known['home']:.1%}, in the site's colours {known['site']:.1%}"
        )
    return shift


def _learn(ctx: Onboarding, asked: int) -> int:
    """Ask and adapt, round by round, until there are `asked` labels or people have to answer; returns how many there are."""
    while (have := len(ctx.pools().frames["labelled"])) < asked:
        if not _ask(ctx, asked - have, asked):
            return have
        _adapt(ctx, asked)
    if have > asked:
        ctx.progress.say(
            f"the site has {counted(have, 'label')} already, more than the {asked} asked for: the model learns from all of them; "
            "under another name the same data begin a site without them"
        )
    if not _is_adapted(ctx, asked):
        _adapt(ctx, asked)  # killed between the labels and the training, or there is another champion since
    return have


def _share_of_updates(labels: int, asked: int) -> float:
    """How long a model learns that has `labels` of the `asked`: one that only asks the next question learns shorter."""
    return ASKING_SHARE if 0 < labels < asked else 1.0


def _is_adapted(ctx: Onboarding, asked: int) -> bool:
    """Whether the adapted model is of these labels and this champion, and has learned for as long as one that is kept. One
    without a label that took less sure guesses is made again."""
    if not ctx.adapted.is_dir():
        return False
    card, labels = read_card(ctx.adapted), len(ctx.pools().frames["labelled"])
    wanted = adaptation_params(ctx.params, read_card(ctx.champion), labels, asked).size.updates
    by_class = card.parameters.get("adaptation", {}).get(BY_CLASS, True)  # as all were that do not say it
    long_enough = card.parameters.get("size", {}).get("updates", wanted) >= wanted
    return card.pool_version == _made_from(ctx) and long_enough and by_class == (labels > 0)


def _waits(ctx: Onboarding) -> dict[str, Any]:
    waiting = _waiting(ctx)
    return {"status": "waiting", "awaited": len(waiting), "queue": str(_sheet(ctx, waiting))}


def _finished(ctx: Onboarding, result: dict[str, Any], version: PoolsVersion) -> dict[str, Any]:
    """Scores before and after, the report, and the adapted model in the site's registry."""
    from flows.sites.site_champion import register

    done = {"status": "adapted", "model": str(ctx.adapted), **_before_and_after(ctx)}
    report = ctx.site / REPORT
    write_atomic(report, json.dumps(result | done, indent=2) + "\n")
    note_learned(ctx.site, ctx.pools())
    done["registered"] = register(ctx.site, version, ctx.progress.say)
    write_atomic(report, json.dumps(result | done, indent=2) + "\n")
    return done


def _site_name(origin: Source) -> str:
    """A site is called as its data are; raises WbcError for a name that no folder can have."""
    name = printable(origin.name)
    if name in ("", ".", "..") or "/" in name:
        raise WbcError(f"{origin.shown}: the site would be called {name!r}: give the file or folder another name")
    return name


def refuse_another_site(site: Path, data: Path | Source) -> None:
    """Raises WbcError where a site of this name has cells, and none of them is among the first of `data`: two hospitals may both
    call their file manifest.csv."""
    if not (site / "data/pools").is_dir():
        return
    known, origin = set(Pools.read(site / "data/pools").table()["sha256"]), source_of(data)
    for _, load in origin.files(origin.manifest({})["path"].head(RECOGNISED_BY).tolist()):
        try:
            if hashlib.sha256(load()).hexdigest() in known:
                return
        except ImageRejected:
            continue  # ingest reports it
    if known:
        raise WbcError(
            f"site {site.name} has cells already, none of them in {origin.shown}: give another site's file or folder another name"
        )


def _start(ctx: Onboarding) -> None:
    """The champion with the site's statistics, which the first round asks with."""
    made_from = start_key(read_card(ctx.champion).version, ctx.pools(), ctx.params.seed)
    if ctx.start.is_dir() and read_card(ctx.start).pool_version == made_from:
        return
    network, card = load_model(ctx.champion)
    facts = {"pool_version": made_from, "version": "", "data_source": f"{card.data_source}, statistics of {ctx.site.name}"}
    save_model(ctx.start, at_site(network, _views_of_site(ctx, card)), card.model_copy(update=facts))


def start_key(champion: str, pools: Pools, seed: int) -> str:
    """What the site's statistics depend on: the champion, which cells the site has (not how many), and how some are chosen."""
    cells = hashlib.sha256("".join(sorted(pools.table()["sha256"])).encode()).hexdigest()[:12]
    return f"{champion}+{cells}+{seed}"


def _views_of_site(ctx: Onboarding, card: ModelCard) -> NDArray[np.uint8]:
    """Some of the site's cells, labelled or not, in mixed order."""
    sha256s = ctx.pools().table()["sha256"].sort_values().to_numpy()
    return decoded_cells(ctx.site, card.input_size, card.view).read(list(sha256s[some_cells(len(sha256s), ctx.params.seed)]))


def _made_from(ctx: Onboarding) -> str:
    """What an adapted model depends on: the champion, the site's labels, home's pools."""
    return f"{read_card(ctx.champion).version}+{ctx.pools().version()}+{usable_pools(ctx.workspace).version()}"


def _round(ctx: Onboarding) -> int:
    """How many rounds of labels there are."""
    labelled = ctx.pools().frames["labelled"]
    return int(labelled["cycle"].max()) if len(labelled) else 0


def _take_answers(ctx: Onboarding, answers: Path) -> list[dict[str, str]]:
    """Take in what people answered, be it a part; returns the rows that are no labels. Raises WbcError where none of them is."""
    taken = import_labels(ctx.site, answers, onboarding_round(ctx.site))
    refused: list[dict[str, str]] = taken["refused"]
    if refused and not taken["new"] + taken["known"]:
        raise WbcError(f"{answers} {refused[0]['place']}: {refused[0]['reason']}; nothing was taken in")
    for one in refused:
        ctx.progress.say(f"not taken in: {answers.name} {one['place']}: {one['reason']}")
    return refused


def _passed_over(ctx: Onboarding) -> Path:
    """The cells that people left without an answer when they answered others of their round; they are asked last again."""
    return ctx.site / "data/passed_over.csv"


def _waiting(ctx: Onboarding) -> pd.DataFrame:
    """The cells of the round that still wait for an answer."""
    if not (ctx.site / "data/queue.csv").exists():
        return pd.DataFrame(columns=QUEUE)
    waiting = awaited(ctx.site)
    return waiting[~waiting["sha256"].isin(_passed(ctx))]


def _passed(ctx: Onboarding) -> set[str]:
    path = _passed_over(ctx)
    return set(read_table(path, ["sha256"])["sha256"]) if path.exists() else set()


def _sheet(ctx: Onboarding, waiting: pd.DataFrame) -> Path:
    """The sheet of this round for people to fill in; one that they have begun to fill in stays as it is."""
    sheet = ctx.site / f"answers-{_round(ctx) + 1}.csv"
    if is_ours(sheet, ctx.site):
        hand_out([(sheet, blank_sheet(waiting))], ctx.site)
    return sheet


def _ask(ctx: Onboarding, missing: int, asked: int) -> bool:
    """Put the next round into the queue and take its answers from the oracle; False where people have to answer. A round that
    they answered in part goes on with that."""
    done, how, frames = _round(ctx), ctx.params.onboard, ctx.usable().frames
    waiting = _waiting(ctx)
    if waiting.empty:
        count = min(missing, -(-asked // how.rounds))
        first = done == 0 or not ctx.adapted.is_dir()
        model, strategy = (ctx.start, how.first_strategy) if first else (ctx.adapted, LATER_STRATEGY)
        card = read_card(model)
        decoded = decoded_cells(ctx.site, card.input_size, card.view)
        if frames["unlabelled"].empty:
            raise _too_few(ctx, asked, len(frames["labelled"]))
        free = frames["unlabelled"][~frames["unlabelled"]["sha256"].isin(_passed(ctx))]
        if free.empty:
            _passed_over(ctx).unlink()  # there are no others left: they are asked about once more
            free = frames["unlabelled"]
        queue = query(model, decoded, free, Question(strategy, count, ctx.params.seed), frames["labelled"])
        write_queue(ctx.site, queue)
        waiting = awaited(ctx.site)
        ctx.progress.say(f"round {done + 1}: {counted(len(waiting), 'cell')} asked for by {strategy}")
    given = oracle_answers(ctx.site, waiting)
    if len(given):
        record(ctx.site, given, done + 1)
    left = _waiting(ctx)
    if left.empty or not _people_answered(ctx):
        return left.empty
    passed = pd.DataFrame({"sha256": sorted(_passed(ctx) | set(left["sha256"]))})
    write_atomic(_passed_over(ctx), passed.to_csv(index=False))
    ctx.progress.say(f"{counted(len(left), 'cell was', 'cells were')} left without an answer: going on with those that have one")
    return True


def _people_answered(ctx: Onboarding) -> bool:
    """Whether a person labelled a cell of the queue, be it as none of the five classes."""
    pools = ctx.pools()
    labelled = pools.frames["labelled"]
    by_people = {*labelled.loc[~labelled["labelled_by"].isin(MACHINES), "sha256"], *pools.none_of_five()["sha256"]}
    return bool(by_people & set(read_queue(ctx.site)["sha256"]))


def _home(ctx: Onboarding, pool: str, card: ModelCard) -> LabelledCells:
    frame = usable_pools(ctx.workspace).frames[pool]
    decoded = decoded_cells(ctx.workspace, card.input_size, card.view)
    return LabelledCells.load(decoded, frame["sha256"].tolist(), frame["label"].tolist())


def _adapt(ctx: Onboarding, asked: int) -> None:
    """Go on from the champion with the site's labelled cells, those of home, and the site's unlabelled ones."""
    network, card = load_model(ctx.champion)
    frames = ctx.usable().frames
    decoded = decoded_cells(ctx.site, card.input_size, card.view)
    home, validation = _home(ctx, "labelled", card), _home(ctx, "validation", card)
    site = LabelledCells.load(decoded, frames["labelled"]["sha256"].tolist(), frames["labelled"]["label"].tolist())
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    unlabelled = UnlabelledCells(tuple(frames["unlabelled"]["sha256"]), decoded.read)
    checkpoint = ctx.site / ".wbc/checkpoint.safetensors"
    params = adaptation_params(ctx.params, card, len(site.labels), asked)
    bf16 = params.size.precision == "bf16-mixed"
    batches = SiteBatches(home, site, params, SITE_SHARE)
    # Without a label pseudo-labels are all there is of the site: they begin at once, and each must be sure (decision 015).
    known = len(site.labels) > 0
    start_share = PSEUDO_START_SHARE if known else 0.0
    prepared = at_site_of(unlabelled, params.seed, bf16)
    pseudo = PseudoLabelling(unlabelled, params, start_share, prepared, by_class=known) if unlabelled.sha256s else None
    training = Training(params, batches, _some(validation), checkpoint, pseudo, start=weights, keep=the_last, fixed=FIXED)
    views = home.images[some_cells(len(home.labels), ctx.params.seed)]
    network = training.fit(*_said(ctx, len(site.labels), asked, params.size.updates))
    adapted, step = _held_back(weights, network, Home(views, validation, bf16), params.onboard.max_home_loss)
    ctx.progress.say(f"{step:.0%} of the way from the champion to the adapted weights, so that home is not forgotten")
    home_model, site_model = at_site(adapted, views), at_site(adapted, _views_of_site(ctx, card))
    shown = decoded_cells(ctx.workspace, card.input_size, card.view).appearance(validation.sha256s)
    new = calibrated_card(home_model, validation, params, shown)
    new.parameters["adaptation"] = {"site_share": SITE_SHARE, "pseudo_start_share": start_share, BY_CLASS: known}
    source = f"{card.data_source}, {counted(len(site.labels), 'labelled cell')} of {ctx.site.name}"
    facts: dict[str, Any] = {
        "pool_version": _made_from(ctx),
        "git_commit": card.git_commit,
        "rendered": card.rendered,
        "data_source": source,
    }
    facts |= {"cells": {"labelled": _filter(batches.cells), "validation": _filter(validation)}}
    save_model(ctx.home, home_model, new.model_copy(update=facts))
    # The site has no labelled cells but those it was trained on: temperature and prediction sets stay those of home until
    # somebody has others (flows/sites/calibration.py).
    scores = _site_scores(ctx, site_model, decoded)
    whose = f"home's validation pool; out-of-distribution scores by the cells of {ctx.site.name}"
    new = new.model_copy(update={**facts, "out_of_distribution": scores, "calibrated_on": whose})
    save_model(ctx.adapted, site_model, new, _site_reference(ctx, site_model, new, decoded))
    checkpoint.unlink(missing_ok=True)


def _filter(cells: LabelledCells) -> CellFilter:
    return CellFilter.of(cells.sha256s, [CLASSES[index] for index in cells.labels])


def _site_scores(ctx: Onboarding, network: AttentionResNet18, decoded: DecodedCells) -> OutOfDistribution | None:
    """Out-of-distribution scores fitted to the site's own cells, by the classes that the adapted network gives them."""
    sha256s = ctx.pools().table()["sha256"].sort_values().tolist()
    seen = predict(network, decoded.batches(sha256s, VALIDATION_BATCH))
    return fit_out_of_distribution(seen, seen.logits.argmax(axis=1), decoded.appearance(sha256s))


def _site_reference(ctx: Onboarding, network: AttentionResNet18, card: ModelCard, decoded: DecodedCells) -> Reference | None:
    """What served cells are compared with: the site's own, some of which the adapted network learned from."""
    sha256s = ctx.pools().table()["sha256"].sort_values().tolist()[:MOST]
    return measured_reference(network, card, decoded.read(sha256s), decoded.appearance(sha256s))


def _some(cells: LabelledCells) -> LabelledCells:
    """Up to PROGRESS_CELLS of these cells, by a hash: for the lines that are shown while the network learns."""
    chosen = np.argsort(np.array(cells.sha256s))[:PROGRESS_CELLS]
    return LabelledCells(cells.images[chosen], cells.labels[chosen], tuple(cells.sha256s[i] for i in chosen))


def _said(ctx: Onboarding, labels: int, asked: int, updates: int) -> tuple[Row, Updated]:
    """What `Training.fit` reports to: its lines, before them how far the onboarding is, and once how long a person waits."""
    lines, began = TrainingLines(updates), time.monotonic()
    then = f"asks for {min(asked - labels, -(-asked // ctx.params.onboard.rounds))} more" if labels < asked else "is measured"
    ctx.progress.say(f"{labels} of {asked} labels: learns for {updates} updates, then {then}")
    seen: list[int] = []

    def updated(update: int) -> None:
        lines.updated(update)
        seen.append(update)
        if len(seen) == ESTIMATED_AFTER:
            left = (time.monotonic() - began) / ESTIMATED_AFTER * (updates - update)
            ctx.progress.say(f"in about {duration(left)} it {then}")

    return lines.validated, updated


@dataclass(frozen=True)
class Home:
    """What an adapted network must not forget: `views` of home's cells, for its statistics, and its validation pool; `bf16` is
    whether it is looked at in bf16, as it was trained."""

    views: NDArray[np.uint8]
    validation: LabelledCells
    bf16: bool


def _held_back(
    start: dict[str, Tensor], network: AttentionResNet18, home: Home, max_loss: float
) -> tuple[AttentionResNet18, float]:
    """The adapted network, moved back towards the champion until home's validation pool loses no more than `max_loss`; each
    step with home's statistics."""
    end = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}

    def accuracy(step: float) -> float:
        network.load_state_dict(between(start, end, step))
        seen = predict(at_site(network, home.views[:LOOK_CELLS], home.bf16), home.validation.batches(), autocast=home.bf16)
        return float((seen.logits.argmax(axis=1) == home.validation.labels).mean())

    step = largest_step(accuracy, accuracy(0.0), max_loss)
    network.load_state_dict(between(start, end, step))
    return network, step


def _predictions(model: Path, root: Path, frame: pd.DataFrame, embeddings: bool = False, bf16: bool = False) -> Predictions:
    network, card = load_model(model)
    decoded = decoded_cells(root, card.input_size, card.view)
    return score_pool(network, decoded, frame["sha256"].tolist(), bf16, embeddings)


def of_all_kinds(cells: pd.DataFrame) -> pd.DataFrame:
    """Up to SHIFT_CELLS rows of a pool, by a hash: it has the order of its manifest, which may go class by class."""
    return cells.sort_values("sha256").head(SHIFT_CELLS)


def _known_shift(ctx: Onboarding) -> dict[str, Any]:
    """The shift, measured once for a champion, home's pools, the site's cells, precision and code: who brings answers does not
    wait for it."""
    path = ctx.site / ".wbc/shift.json"
    cells = f"{read_card(ctx.start).pool_version}+{usable_pools(ctx.workspace).version()}"
    measured_for = f"{cells}+{ctx.params.size.precision}+{code_version('flows.sites.onboard:_shift')}"
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:  # a damaged file: what it said is measured again
        known = {}
    if known.get("measured_for") != measured_for:
        known = {"measured_for": measured_for, "shift": _shift(ctx)}
        write_atomic(path, json.dumps(known) + "\n")
    shift: dict[str, Any] = known["shift"]
    return shift


def _shift(ctx: Onboarding) -> dict[str, Any]:
    """The site's cells against home's, by the champion, without a label."""
    from wbc_model.evaluation.shift import cost_of_colours, measure_shift

    pools = usable_pools(ctx.workspace).frames
    frames = [of_all_kinds(pools[pool]) for pool in ("labelled", "validation")]
    bf16 = ctx.params.size.precision == "bf16-mixed"
    home, half = (_predictions(ctx.champion, ctx.workspace, frame, True, bf16) for frame in frames)
    site = _predictions(ctx.champion, ctx.site, ctx.pools().table().sort_values("sha256"), True, bf16)
    network, card = load_model(ctx.champion)
    shift = measure_shift(home, half, site, card.temperature, ctx.params.seed)
    of_site = _views_of_site(ctx, card)
    if len(of_site) < MIN_CELLS:
        return {**shift, "recoloured": None}
    decoded = decoded_cells(ctx.workspace, card.input_size, card.view)
    cells = LabelledCells.load(decoded, frames[1]["sha256"].tolist(), frames[1]["label"].tolist())
    return {**shift, "recoloured": cost_of_colours(network, cells.images, cells.labels, half.logits, of_site, bf16)}


def _before_and_after(ctx: Onboarding) -> dict[str, Any]:
    """The champion and the adapted model on home's test pool and on the site's cells that were not asked for; there also the
    champion with the site's statistics. `seen_before`: whether the adapted model was made from some of either."""
    rest = ctx.usable().frames["unlabelled"]
    oracle = ctx.site / "data/oracle.csv"
    known = dict(pd.read_csv(oracle, dtype=str).to_numpy()) if oracle.exists() else {}
    rest = rest[rest["sha256"].isin(set(known))].assign(label=lambda frame: frame["sha256"].map(known))
    home = usable_pools(ctx.workspace).frames["test"]
    result: dict[str, Any] = {"before": {"home": _metrics(ctx.champion, ctx.workspace, home)}}
    result["after"] = {"home": _metrics(ctx.home, ctx.workspace, home)}
    if len(rest):  # cells of a site whose labels nobody knows cannot be a test
        result["before"]["site"] = _metrics(ctx.champion, ctx.site, rest)
        result["statistics"] = {"site": _metrics(ctx.start, ctx.site, rest)}
        result["after"]["site"] = _metrics(ctx.adapted, ctx.site, rest)
    # A site may have sent cells that home has, too.
    card, tested = read_card(ctx.adapted), {"home": home, **({"site": rest} if len(rest) else {})}
    result["seen_before"] = {place: seen_before(card, frame["sha256"].tolist()) for place, frame in tested.items()}
    return result


def _metrics(model: Path, root: Path, frame: pd.DataFrame) -> dict[str, Any]:
    seen = _predictions(model, root, frame)
    labels = np.array([CLASS_INDEX[label] for label in frame["label"]], dtype=np.int64)
    return classification_metrics(softmax(seen.logits, read_card(model).temperature), labels)
