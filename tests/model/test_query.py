"""From stored cells to a queue: decoding once, scoring in a stream, choosing."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import NARROW
from tests.model.conftest import ROOT, tiny_params
from tests.pools import ingest
from wbc_model.acquisition.query import QUEUE_COLUMNS, Question, draw_candidates, leading_candidates, query, score_pool
from wbc_model.acquisition.queue import colours_of, first_query
from wbc_model.acquisition.strategies import DIVERSE_FACTOR, STRATEGIES
from wbc_model.cells.decoded import DecodedCells
from wbc_model.cells.pools import Pools
from wbc_model.cells.store import ImageStore
from wbc_model.core.errors import WbcError
from wbc_model.core.images import look, preprocess
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.core.probabilities import softmax
from wbc_model.evaluation.evaluate import evaluate_data, predict_directory
from wbc_model.network.batch_norm_statistics import some_cells, with_statistics_of
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.predict import predict
from wbc_model.network.resnet import MEAN, STD, AttentionResNet18
from wbc_model.rendering.cells import write_cells

pytestmark = pytest.mark.usefixtures("narrow")


class Site:
    """Rendered cells in a store and an untrained model of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = write_cells(folder / "rendered", 120, seed=0, size=64)
        ingest(self.manifest, folder / "data", tiny_params())
        self.store = ImageStore(folder / "data/images")
        self.pools = Pools.read(folder / "data/pools")
        self.model = folder / "model"
        architecture = Architecture(attention="none", lossnet=False)
        card = ModelCard(version="", input_size=32, normalisation=Normalisation(mean=MEAN, std=STD), architecture=architecture)
        save_model(self.model, AttentionResNet18("none", lossnet=False), card)

    def decoded(self, name: str = "cache") -> DecodedCells:
        return DecodedCells(self.store, self.folder / name, 32, "whole")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def test_decoded_cells_are_what_preprocessing_gives_in_any_order(site: Site):
    sha256s = list(site.store.index())[::-3]
    encoded = dict(site.store.read(sha256s))
    expected = np.stack([preprocess(encoded[sha256], 32, "whole") for sha256 in sha256s])
    assert np.array_equal(site.decoded().read(sha256s), expected)
    assert np.array_equal(np.concatenate(list(site.decoded().batches(sha256s, 7))), expected)


def test_cells_are_decoded_once(site: Site, monkeypatch: pytest.MonkeyPatch):
    sha256s = list(site.store.index())
    first = site.decoded("once").read(sha256s)
    monkeypatch.setattr("wbc_model.core.images.preprocess", lambda *_: pytest.fail("decoded again"))
    assert np.array_equal(site.decoded("once").read(sha256s), first)


def test_a_cell_that_is_not_stored_is_named(site: Site):
    with pytest.raises(WbcError, match="cell 0000 is in a pool but not in the image store"):
        site.decoded().read(["0000"])


def test_a_cut_cache_file_is_named(site: Site):
    sha256s = list(site.store.index())
    site.decoded("cut").read(sha256s)
    file = next((site.folder / "cut").glob("*.u8"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WbcError, match=r"u8 is damaged: delete it"):
        site.decoded("cut").read(sha256s)


def test_the_queue_holds_unlabelled_cells_best_first_and_repeats(site: Site):
    unlabelled = site.pools.frames["unlabelled"]
    queue = query(site.model, site.decoded(), unlabelled, Question("entropy", 9, 0))
    assert tuple(queue.columns) == QUEUE_COLUMNS
    assert queue["rank"].tolist() == list(range(1, 10))
    assert queue["score"].is_monotonic_decreasing
    assert set(queue["sha256"]) <= set(unlabelled["sha256"])
    assert queue["sha256"].is_unique
    pd.testing.assert_frame_equal(queue, query(site.model, site.decoded(), unlabelled, Question("entropy", 9, 0)))
    assert len(query(site.model, site.decoded(), unlabelled, Question("random", 10_000, 0))) == len(unlabelled)
    assert query(site.model, site.decoded(), unlabelled.iloc[:0], Question("margin", 5, 0)).empty


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"learning_loss", "diverse_loss"}))
def test_every_strategy_queues_with_reasons_and_nothing_else_is_computed(site: Site, name: str, monkeypatch: pytest.MonkeyPatch):
    scored: dict[int, bool] = {}

    def counted(network, decoded, sha256s, autocast, embeddings=False):
        scored[len(sha256s)] = embeddings
        return score_pool(network, decoded, sha256s, autocast, embeddings)

    monkeypatch.setattr("wbc_model.acquisition.query.score_pool", counted)
    labelled, unlabelled = site.pools.frames["labelled"], site.pools.frames["unlabelled"]
    assert 0 < len(labelled) != len(unlabelled)
    queue = query(site.model, site.decoded(), unlabelled, Question(name, 9, 0), labelled)
    assert tuple(queue.columns) == QUEUE_COLUMNS
    assert set(queue["sha256"]) <= set(unlabelled["sha256"])
    assert queue["sha256"].is_unique
    assert len(queue) == 9
    assert np.isfinite(queue["score"]).all()
    assert (queue["reason"].str.len() > 0).all()
    needs = STRATEGIES[name].needs
    expected = [len(unlabelled)] + [len(labelled)] * ("labelled" in needs)
    assert scored == dict.fromkeys(expected, "embedding" in needs)
    pd.testing.assert_frame_equal(queue, query(site.model, site.decoded(), unlabelled, Question(name, 9, 0), labelled))
    assert len(query(site.model, site.decoded(), unlabelled, Question(name, 10_000, 0), labelled.iloc[:0])) == len(unlabelled)


@pytest.mark.parametrize("name", ["learning_loss", "diverse_loss"])
def test_strategies_on_predicted_loss_queue_cells_of_high_predicted_loss(site: Site, tmp_path: Path, name: str):
    torch.manual_seed(0)
    architecture = Architecture(attention="none", lossnet=True)
    card = ModelCard(version="", input_size=32, normalisation=Normalisation(mean=MEAN, std=STD), architecture=architecture)
    save_model(tmp_path / "model", AttentionResNet18("none", lossnet=True), card)
    unlabelled = site.pools.frames["unlabelled"]
    queue = query(tmp_path / "model", site.decoded(), unlabelled, Question(name, 3, 0))
    every = query(tmp_path / "model", site.decoded(), unlabelled, Question("learning_loss", len(unlabelled), 0))
    highest = every["sha256"].head(3 if name == "learning_loss" else 3 * DIVERSE_FACTOR).tolist()
    assert queue["sha256"].iloc[0] == highest[0]
    assert set(queue["sha256"]) <= set(highest)


def test_the_labelled_pool_is_where_k_center_starts(site: Site):
    """A cell that is labelled already, were it in the pool, would come last."""
    frames = site.pools.frames
    labelled = frames["labelled"]
    pool = pd.concat([labelled.iloc[:1], frames["unlabelled"]])
    queue = query(site.model, site.decoded(), pool, Question("k_center", len(pool), 0), labelled)
    assert queue["sha256"].iloc[-1] == labelled["sha256"].iloc[0]
    assert queue["score"].iloc[-1] == 0
    with pytest.raises(ValueError, match="k_center needs the labelled pool"):
        query(site.model, site.decoded(), pool, Question("k_center", 3, 0))


def test_the_stage_hands_the_labelled_pool_over(site: Site):
    from flows.pipeline import stages

    text = (ROOT / "params.yaml").read_text()
    changed = text.replace("strategy: badge ", "strategy: rare_threshold ", 1)  # that of `acquisition`, not of `onboard`
    (site.folder / "params.yaml").write_text(changed)
    shutil.copytree(site.model, site.folder / "models/candidate")
    result = stages.query(site.folder, count=6)
    assert result["strategy"] == "rare_threshold"
    queue = pd.read_csv(site.folder / "data/queue.csv")
    unlabelled, labelled = (site.pools.frames[name] for name in ("unlabelled", "labelled"))
    expected = query(site.model, site.decoded(), unlabelled, Question("rare_threshold", 6, 0, autocast=True), labelled)
    assert queue["sha256"].tolist() == expected["sha256"].tolist()
    assert queue["reason"].str.contains("against the rest").all()


def test_the_stage_asks_about_no_cell_that_nobody_could_name(site: Site):
    from flows.pipeline import stages
    from flows.workspace import after_cycle, nameless, note_after_cycle, note_nameless

    shutil.copyfile(ROOT / "params.yaml", site.folder / "params.yaml")
    shutil.copytree(site.model, site.folder / "models/candidate", dirs_exist_ok=True)
    stages.query(site.folder, count=6)
    first = pd.read_csv(site.folder / "data/queue.csv")["sha256"].tolist()
    note_nameless(site.folder, first[:4])
    note_after_cycle(site.folder, 3)
    assert (after_cycle(site.folder), nameless(site.folder)) == (3, set(first[:4])), "the next retraining knows them"
    stages.query(site.folder, count=6)
    again = pd.read_csv(site.folder / "data/queue.csv")["sha256"].tolist()
    assert len(again) == 6
    assert not set(again) & set(first[:4])
    note_nameless(site.folder, site.pools.frames["unlabelled"]["sha256"].tolist())
    assert stages.query(site.folder, count=6)["cells"] == 0
    assert "nobody could name" in stages.why_nothing_is_asked(site.folder)
    note_nameless(site.folder, [])
    stages.query(site.folder, count=6)
    assert pd.read_csv(site.folder / "data/queue.csv")["sha256"].tolist() == first, "named by somebody, it may be asked about"
    (site.folder / "data/retraining.yaml").write_text("after_cycle: 0\nunnamed: yes\n")
    with pytest.raises(WbcError, match="unnamed is no list of cells"):
        stages.query(site.folder, count=6)
    (site.folder / "data/retraining.yaml").unlink()


@pytest.mark.parametrize("name", ["badge", "k_center", "typiclust", "colour_cover", "entropy"])
def test_of_many_cells_those_of_the_highest_scores_and_random_ones_are_compared(
    site: Site, name: str, monkeypatch: pytest.MonkeyPatch
):
    frames, auto = site.pools.frames, Question(name, 5, 3, candidates="auto")
    few = query(site.model, site.decoded(), frames["unlabelled"], Question(name, 5, 3), frames["labelled"])
    pd.testing.assert_frame_equal(few, query(site.model, site.decoded(), frames["unlabelled"], auto, frames["labelled"]))
    monkeypatch.setattr("wbc_model.acquisition.query.MANY", 20)
    scored: list[tuple[int, bool]] = []

    def counted(network, decoded, sha256s, autocast, embeddings=False):
        scored.append((len(sha256s), embeddings))
        return score_pool(network, decoded, sha256s, autocast, embeddings)

    monkeypatch.setattr("wbc_model.acquisition.query.score_pool", counted)
    many = query(site.model, site.decoded(), frames["unlabelled"], auto, frames["labelled"])
    assert len(many) == 5
    pd.testing.assert_frame_equal(many, query(site.model, site.decoded(), frames["unlabelled"], auto, frames["labelled"]))
    whole = len(frames["unlabelled"])
    if name == "entropy":  # it compares no cell with another
        pd.testing.assert_frame_equal(many, few)
        assert scored == [(whole, False)] * 2
    else:
        assert (whole, False) in scored
        assert (20, "embedding" in STRATEGIES[name].needs) in scored
        assert (whole, True) not in scored


def test_half_of_the_candidates_are_those_of_the_highest_score():
    rng = np.random.default_rng(0)
    p, loss = rng.dirichlet(np.ones(5), 400), rng.normal(size=400)
    gradient = np.linalg.norm(p - np.eye(5)[p.argmax(axis=1)], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wbc_model.acquisition.query.MANY", 100)
        for name, lead in (("badge", gradient), ("diverse_loss", loss)):
            found = leading_candidates(STRATEGIES[name], p, loss, 10, seed=1)
            assert len(set(found.tolist())) == 100
            assert (np.diff(found) > 0).all()
            highest = np.argsort(-lead)
            assert set(highest[:50].tolist()) <= set(found.tolist())
            drawn = np.array([place for place in range(400) if highest[place] in set(found.tolist())][50:])
            assert 150 < drawn.mean() < 300, "the others are from all of the rest"
            assert found.tolist() != leading_candidates(STRATEGIES[name], p, loss, 10, seed=2).tolist()
        assert len(leading_candidates(STRATEGIES["badge"], p, loss, 90, seed=1)) == 180
        assert leading_candidates(STRATEGIES["badge"], p, loss, 399, seed=1).tolist() == list(range(400))


def test_a_first_query_of_many_cells_looks_at_some_drawn_at_random(site: Site, monkeypatch: pytest.MonkeyPatch):
    cells = site.pools.frames["unlabelled"]
    monkeypatch.setattr("wbc_model.acquisition.queue.MANY", 30)
    looked_at: list[int] = []

    def counted(decoded, sha256s):
        looked_at.append(len(sha256s))
        return colours_of(decoded, sha256s)

    monkeypatch.setattr("wbc_model.acquisition.queue.colours_of", counted)
    asked = [first_query(site.decoded(), cells, count, 0)["sha256"].tolist() for count in (4, 4, 20)]
    assert looked_at == [30, 30, 40]
    assert asked[0] == asked[1]
    assert set(asked[0]) <= set(cells["sha256"])


def test_candidates_are_a_random_part_of_the_pool_for_every_strategy(site: Site):
    unlabelled = site.pools.frames["unlabelled"]
    drawn = draw_candidates(unlabelled, 20, 5, seed=3)
    assert len(drawn) == 20
    assert drawn.index.is_monotonic_increasing
    assert drawn.index.tolist() != unlabelled.index[:20].tolist()
    assert drawn.equals(draw_candidates(unlabelled, 20, 5, seed=3))
    assert not drawn.equals(draw_candidates(unlabelled, 20, 5, seed=4))
    assert draw_candidates(unlabelled, 0, 5, seed=3) is unlabelled
    assert draw_candidates(unlabelled, 9_999, 5, seed=3) is unlabelled
    assert len(draw_candidates(unlabelled, 4, 9, seed=3)) == 9
    for name in ("entropy", "k_center"):
        queue = query(site.model, site.decoded(), unlabelled, Question(name, 5, 3, candidates=20), site.pools.frames["labelled"])
        assert set(queue["sha256"]) <= set(drawn["sha256"])
        assert len(queue) == 5
    best = query(site.model, site.decoded(), drawn, Question("entropy", 5, 3))
    few = query(site.model, site.decoded(), unlabelled, Question("entropy", 5, 3, candidates=20))
    assert sorted(few["sha256"]) == sorted(best["sha256"])


def test_scoring_slice_by_slice_is_scoring_at_once(site: Site, monkeypatch: pytest.MonkeyPatch):
    network, _ = load_model(site.model)
    sha256s = site.pools.frames["unlabelled"]["sha256"].tolist()
    whole = predict(network, site.decoded().batches(sha256s, 16), embeddings=True)
    monkeypatch.setattr("wbc_model.acquisition.query.BATCH", 16)
    monkeypatch.setattr("wbc_model.acquisition.query.SLICE", 32)
    sliced = score_pool(network, site.decoded(), sha256s, autocast=False, embeddings=True)
    assert sliced.embedding.shape == (len(sha256s), NARROW[-1])
    for ours, expected in zip(sliced, whole, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert score_pool(network, site.decoded(), sha256s, autocast=False).embedding.shape == (len(sha256s), 0)
    assert score_pool(network, site.decoded(), [], autocast=False).logits.shape == (0, 5)


def test_learning_loss_needs_a_lossnet(site: Site):
    with pytest.raises(WbcError, match=r"set model\.lossnet to true"):
        query(site.model, site.decoded(), site.pools.frames["unlabelled"], Question("learning_loss", 5, 0))


def test_pools_and_files_give_the_same_predictions(site: Site):
    """The stage (decoded cache) and `--model --data` (files as they come) are one way of preprocessing."""
    metrics, files = evaluate_data(site.model, site.manifest)
    assert metrics["split"] == "all"
    assert metrics["n"] == 120
    table = site.pools.frames["test"]
    pool = predict_directory(site.model, site.decoded(), table).assign(path=table["path"].to_numpy())
    both = pool.merge(files, on="path", suffixes=("", "_file"))
    assert len(both) == len(table)
    np.testing.assert_allclose(both["p_Monocyte"], both["p_Monocyte_file"], atol=1e-6)
    assert (both["label"] == both["label_file"]).all()


def test_evaluating_by_the_datas_own_statistics_needs_no_label(site: Site, tmp_path: Path):
    """The predictions are those of the network with the statistics of these very images, whatever their labels say."""
    manifest = pd.read_csv(site.manifest)
    paths = [site.manifest.parent / path for path in manifest["path"]]
    views = np.stack([preprocess(path.read_bytes(), 32, "whole") for path in paths])
    network, card = load_model(site.model)
    measured = with_statistics_of(network, views[some_cells(len(views), seed=0)])
    expected = softmax(predict(measured, [views]).logits, card.temperature)
    wrong = manifest.assign(path=[str(path) for path in paths], label=np.roll(manifest["label"], 7))
    wrong.to_csv(tmp_path / "wrong.csv", index=False)
    for data in (site.manifest, tmp_path / "wrong.csv"):
        _, frame = evaluate_data(site.model, data, own_statistics=True)
        np.testing.assert_allclose(frame[[f"p_{name}" for name in card.classes]].to_numpy(), expected, atol=1e-6)
    _, usual = evaluate_data(site.model, site.manifest)
    assert np.abs(usual["p_Monocyte"].to_numpy() - expected[:, card.classes.index("Monocyte")]).max() > 1e-3
    wrong.head(31).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(WbcError, match=r"few\.csv: 31 usable images are too few"):
        evaluate_data(site.model, tmp_path / "few.csv", own_statistics=True)


def test_appearance_is_that_of_each_cell_in_the_order_asked_for(site: Site):
    sha256s = list(site.store.index())[::-3]
    encoded = dict(site.store.read(sha256s))
    expected = np.stack([look(encoded[sha256], 32, "whole")[1] for sha256 in sha256s])
    np.testing.assert_array_equal(site.decoded().appearance(sha256s), expected)


def test_evaluating_on_bad_files_names_them(site: Site, tmp_path: Path):
    good = (site.manifest.parent / pd.read_csv(site.manifest)["path"].iloc[0]).read_bytes()
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "bad.png").write_bytes(b"no image")
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label\ngood.png,Monocyte\nbad.png,Monocyte\nnone.png,Monocyte\ngood.png,Blast\n../x.png,Monocyte\n")
    metrics, _ = evaluate_data(site.model, manifest)
    assert metrics["n"] == 1
    reasons = {row["path"]: row["reason"] for row in metrics["rejected"] if row["path"] != "good.png"}
    assert reasons == {"bad.png": "undecodable", "none.png": "missing", "../x.png": "outside_folder"}
    manifest.write_text("path,label\nbad.png,Monocyte\n")
    with pytest.raises(WbcError, match="no usable labelled image"):
        evaluate_data(site.model, manifest)
