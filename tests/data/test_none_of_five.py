"""What is none of the five classes: it leaves the queue, is asked and learned no more, is no class of any pool, comes back."""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flows.labels import (
    LOG,
    awaited,
    check_replayed,
    conflicts,
    decide,
    decide_all,
    import_labels,
    kinds,
    oracle_answers,
    read_log,
    read_none_of_five,
    read_queue,
    record,
    replay,
    status,
    take_in,
    take_waiting,
    waiting,
)
from flows.pipeline.stages import decoded_cells, evaluate, query, usable_pools
from flows.retraining import fresh_cells
from flows.workspace import set_params, template
from tests.pools import ingest
from wbc_model.cells.none_of_five import standing
from wbc_model.cells.pools import Pools
from wbc_model.cells.rejections import Rejection, rejections_csv
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation
from wbc_model.evaluation.calibrate import fit_out_of_distribution
from wbc_model.evaluation.evaluate import label_indices
from wbc_model.network.model_directory import load_model, save_model
from wbc_model.network.predict import predict
from wbc_model.network.resnet import AttentionResNet18
from wbc_model.params import read_params
from wbc_model.rendering.cells import write_cells

pytestmark = pytest.mark.usefixtures("narrow")

NONE = "none_of_five.csv"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty cells of noise in twenty groups; most wait for a label, five of them are asked about."""
    root = tmp_path_factory.mktemp("none") / "site"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(template(name), root / name)
    set_params(root, {"retrain.annotator": "people"})
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(root.parent / f"{number}.png")
        split = "train" if number < 32 else "val" if number < 36 else "test"
        rows.append([f"{number}.png", CLASSES[number % 5], split, f"smear {number // 2}"])
    pd.DataFrame(rows, columns=["path", "label", "split", "group"]).to_csv(root.parent / "manifest.csv", index=False)
    ingest(root.parent / "manifest.csv", root / "data", read_params(root / "params.yaml"))
    unlabelled = Pools.read(root / "data/pools").frames["unlabelled"].sort_values("path")
    queue = unlabelled[["sha256", "path"]].head(5).assign(score=1.0, reason="unsure", predicted="Monocyte", probability=0.5)
    queue.insert(2, "rank", range(1, 6))
    queue.to_csv(root / "data/queue.csv", index=False)
    return root


@pytest.fixture
def site(filled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled, tmp_path / "site"))


def pools(site: Path) -> Pools:
    return Pools.read(site / "data/pools")


def answered(cells: dict[str, str], by: str = "Ada", at: str = "") -> pd.DataFrame:
    rows = [[sha256, answer, by, at] for sha256, answer in cells.items()]
    return pd.DataFrame(rows, columns=["sha256", "label", "labelled_by", "labelled_at"], dtype=str)


def where(site: Path, sha256: str) -> tuple[str, str]:
    """The pool that a cell is in, and its label there."""
    row = pools(site).table().set_index("sha256").loc[sha256]
    return row["pool"], row["label"]


def test_it_leaves_the_queue_and_is_not_asked_again(site: Path) -> None:
    first, second, *_ = read_queue(site)["sha256"]
    before = pools(site).version()
    taken = take_in(site, answered({first: "Smudge", second: "not a leukocyte"}), 3)
    assert (taken.new, taken.none_of_five, taken.corrected, taken.refused) == (2, 2, 0, [])
    assert taken.pools == pools(site).version() != before, "what learns from the pools runs again"
    assert len(awaited(site)) == 3
    assert where(site, first) == ("unlabelled", "")
    assert status(site)["none_of_five"] == {"Smudge": 1, "not a leukocyte": 1}
    log = pd.read_csv(site / "data" / NONE, dtype=str, keep_default_na=False)
    assert log[["sha256", "answer", "labelled_by", "cycle"]].to_numpy().tolist() == [
        [first, "Smudge", "Ada", "3"],
        [second, "not a leukocyte", "Ada", "3"],
    ]
    assert not (site / LOG).exists(), "it is no label of a class"
    usable = usable_pools(site)
    assert not {first, second} & set(usable.table()["sha256"]), "no pseudo-label is made of it, and no strategy sees it"
    assert usable.counts()["unlabelled"] == pools(site).counts()["unlabelled"] - 2
    asked = query(site, 40)  # the first query, which asks for every cell that there is
    assert asked["cells"] == usable.counts()["unlabelled"]
    assert not {first, second} & set(read_queue(site)["sha256"])


def test_the_same_again_is_known_and_the_oracle_says_nothing(site: Path) -> None:
    first, *_ = read_queue(site)["sha256"]
    take_in(site, answered({first: "Band"}), 1)
    version = pools(site).version()
    again = take_in(site, answered({first: "Band"}), 2)
    assert (again.new, again.known) == (0, 1)
    assert record(site, oracle_answers(site, read_queue(site)), 1) == 4
    assert where(site, first) == ("unlabelled", "")
    assert len(read_none_of_five(site)) == 1
    assert pools(site).version() != version, "of the four others"


@pytest.mark.parametrize("pool", ["labelled", "validation", "test"])
def test_what_has_a_label_is_taken_out_and_comes_back_to_its_side(site: Path, pool: str) -> None:
    cell = pools(site).frames[pool].iloc[0]
    sha256, held_out = cell["sha256"], int(pool != "labelled")
    result = decide(site, sha256[:10], "artefacts", "Ada", "dirt on the lens", 2)
    assert (result["new"], result["none_of_five"], result["corrected"], result["held_out"]) == (1, 1, 1, held_out)
    assert where(site, sha256) == ("unlabelled", "")
    assert pools(site).none_of_five()[["sha256", "answer"]].to_numpy().tolist() == [[sha256, "Artefact"]]
    assert set(pools(site).none_of_five()["group"]) == {cell["group"]}
    back = decide(site, cell["path"], "Monocyte", "Ben", "it is a cell after all", 2)
    assert (back["new"], back["none_of_five"], back["held_out"]) == (1, 0, held_out)
    assert where(site, sha256) == (pool, "Monocyte")
    assert standing(read_none_of_five(site)).empty
    rows = pd.read_csv(site / "data" / NONE, dtype=str)
    assert rows[["answer", "labelled_by", "why"]].to_numpy().tolist() == [
        ["Artefact", "Ada", "dirt on the lens"],
        ["Monocyte", "Ben", "it is a cell after all"],
    ]
    assert read_log(site)["label"].tolist() == ["Monocyte"]
    decide(site, sha256, "Smudge", "Cem", "no, it is not", 2)
    assert where(site, sha256) == ("unlabelled", "")
    assert standing(read_none_of_five(site))["label"].tolist() == ["Smudge"]


def test_an_older_answer_does_not_come_back(site: Path) -> None:
    first, *_ = read_queue(site)["sha256"]
    take_in(site, answered({first: "Monocyte"}, at="2026-11-20T08:00:00Z"), 1)
    take_in(site, answered({first: "Smudge"}, by="Ben", at="2026-11-22T08:00:00Z"), 1)
    late = take_in(site, answered({first: "Basophil"}, by="Cem", at="2026-11-21T08:00:00Z"), 1)
    again = take_in(site, answered({first: "Monocyte"}, at="2026-11-20T08:00:00Z"), 1)
    assert (late.new, again.new) == (0, 0)
    assert "is older than Smudge by Ben of 2026-11-22T08:00:00Z" in late.refused[0].reason
    assert "is superseded: Smudge by Ben" in again.refused[0].reason
    newer = take_in(site, answered({first: "Basophil"}, by="Cem", at="2026-11-23T08:00:00Z"), 1)
    assert (newer.new, newer.corrected) == (1, 1)
    assert where(site, first) == ("labelled", "Basophil")


def test_a_sheet_brings_answers_of_all_kinds(site: Path, tmp_path: Path) -> None:
    cells = read_queue(site)["sha256"].tolist()
    quarantined = pools(site).frames["unlabelled"].sort_values("path")["sha256"].tolist()[8]
    (site / "data/quarantine.csv").write_text(rejections_csv([Rejection("8.png", quarantined, "blurred", "")]))
    given = [*zip(cells, ["Smudges", "unsure", "NOT A LEUKOCYTE", "Zebra", "BAND"], strict=True), (quarantined, "Artefact")]
    (tmp_path / "sheet.csv").write_text("sha256,label,labelled_by\n" + "".join(f"{sha},{answer},Ada\n" for sha, answer in given))
    result = import_labels(site, tmp_path / "sheet.csv", 1)
    assert (result["new"], result["none_of_five"], result["unsure"], result["awaited"]) == (3, 3, 1, 2)
    assert result["wrote"] == [f"data/{NONE}", "data/pools"]
    refused = {one["place"]: one["reason"] for one in result["refused"]}
    assert set(refused) == {"line 5", "line 7"}
    assert "'Zebra' is not one of Basophil" in refused["line 5"]
    assert "Band, Immature granulocyte, Blast" in refused["line 5"]
    assert f"`wbc labels decide {quarantined[:12]} Artefact`" in refused["line 7"]
    assert status(site)["none_of_five"] == {"Band": 1, "Smudge": 1, "not a leukocyte": 1}
    assert import_labels(site, tmp_path / "sheet.csv", 1)["known"] == 3
    decide(site, quarantined, "Artefact", "Ada", "blurred, and dirt", 1)
    assert status(site)["none_of_five"]["Artefact"] == 1
    with pytest.raises(WbcError, match="unsure is no decision"):
        decide(site, cells[1], "unsure", "Ada", "I do not know", 1)


def test_a_disagreement_is_told_until_somebody_has_decided(site: Path, tmp_path: Path) -> None:
    """A project of Label Studio exports all that was ever said in it, each time."""
    first, *_ = read_queue(site)["sha256"]
    lines = [f"{first},Monocyte,Ada,2026-11-22T10:00:00Z", f"{first},Smudge,Ben,2026-11-22T11:00:00Z"]
    (tmp_path / "sheet.csv").write_text("\n".join(["sha256,label,labelled_by,labelled_at", *lines]) + "\n")
    for _ in range(2):
        result = import_labels(site, tmp_path / "sheet.csv", 1)
        assert (result["labels"], result["known"], len(result["refused"])) == (0, 0, 1)
    assert decide(site, first, "Smudge", "Cem", "both looked again", 1)["wrote"] == [f"data/{NONE}", "data/pools"]
    result = import_labels(site, tmp_path / "sheet.csv", 1)
    assert (result["labels"], result["known"], result["refused"]) == (1, 1, [])
    assert decide(site, first, "Monocyte", "Cem", "once more", 1)["wrote"] == ["data/labels.csv", f"data/{NONE}", "data/pools"]
    with (tmp_path / "sheet.csv").open("a") as sheet:
        sheet.write(f"{first},Basophil,Ben,2026-11-22T12:00:00Z\n")
    assert import_labels(site, tmp_path / "sheet.csv", 1)["refused"] == [], "said before the decision, be it a third thing"


def test_a_site_s_own_word_for_a_class_comes_first(site: Path, tmp_path: Path) -> None:
    params = site / "params.yaml"
    params.write_text(params.read_text().replace("label_names: {}", "label_names: {band: Neutrophil}"))
    assert read_params(params).data.label_names == {"band": "Neutrophil"}
    first, *_ = read_queue(site)["sha256"]
    (tmp_path / "sheet.csv").write_text(f"sha256,label\n{first},Band\n")
    assert import_labels(site, tmp_path / "sheet.csv", 1)["none_of_five"] == 0
    assert where(site, first) == ("labelled", "Neutrophil")


def test_a_manifest_that_knows_better_is_a_conflict(site: Path, tmp_path: Path) -> None:
    cell = pools(site).frames["unlabelled"].sort_values("path").iloc[0]
    take_in(site, answered({cell["sha256"]: "Smudge"}), 1)
    manifest = pd.DataFrame([[cell["path"], "Basophil"]], columns=["path", "label"])
    images = tmp_path / "images"
    images.mkdir()
    (images / cell["path"]).write_bytes(Path(image_of(site, cell["sha256"])).read_bytes())
    manifest.to_csv(images / "again.csv", index=False)
    report = ingest(images / "again.csv", site / "data", read_params(site / "params.yaml"))
    assert [(one.label, one.labelled_by, one.other) for one in report.conflicts] == [("Smudge", "a person", "Basophil")]
    assert where(site, cell["sha256"]) == ("unlabelled", "")
    assert decide_all(site, "manifest", None, "Ada", "seen again", 1)["conflicts"] == 0
    assert conflicts(site) == []
    assert where(site, cell["sha256"]) == ("labelled", "Basophil")


def image_of(site: Path, sha256: str) -> str:
    """A file with the image of a cell, as it was ingested."""
    from wbc_model.cells.store import ImageStore

    path = site.parent / f"{sha256}.png"
    for _, data in ImageStore(site / "data/images").read([sha256]):
        path.write_bytes(data)
    return str(path)


def test_after_a_checkout_it_is_replayed_only_when_somebody_asks(site: Path) -> None:
    before = {path: path.read_bytes() for path in (site / "data/pools").iterdir()}
    first, second, third, *_ = read_queue(site)["sha256"]
    take_in(site, answered({first: "Monocyte", second: "Monocyte"}), 1)
    take_in(site, answered({first: "Smudge", third: "Blast"}, by="Ben"), 1)
    expected = pools(site).version()
    for path, content in before.items():
        path.write_bytes(content)
    with pytest.raises(WbcError, match=r"3 labels that the pools do not.*`wbc labels replay`"):
        check_replayed(site)
    assert replay(site) == 3
    assert pools(site).version() == expected
    assert replay(site) == 0


@pytest.mark.parametrize("survives", range(5))
def test_record_log_and_pools_change_together_or_not_at_all(site: Path, survives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    real, done = os.replace, 0

    def replace(source: str, target: str) -> None:
        nonlocal done
        if done == survives:
            raise Killed
        done += 1
        real(source, target)

    first, second, *_ = read_queue(site)["sha256"]
    monkeypatch.setattr(os, "replace", replace)
    with contextlib.suppress(Killed):
        take_in(site, answered({first: "Smudge", second: "Monocyte"}), 1)
    monkeypatch.undo()
    check_replayed(site)
    whole = survives > 0
    assert len(pools(site).none_of_five()) == len(read_none_of_five(site)) == len(read_log(site)) == whole


def test_answers_that_came_while_somebody_was_at_work_wait(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = read_queue(site)["sha256"]
    monkeypatch.setattr("flows.labels.at_work", lambda workspace: "a retraining (pid 1)")
    taken = take_in(site, answered({first: "Smudge", second: "Monocyte"}), 1)
    assert (taken.new, taken.none_of_five, taken.waits_for) == (2, 1, "a retraining (pid 1)")
    assert (waiting(site), len(read_none_of_five(site))) == (2, 0)
    monkeypatch.undo()
    assert take_waiting(site) == 2
    assert status(site)["none_of_five"] == {"Smudge": 1}


def test_it_stands_in_no_group_s_way_to_the_test_pool(site: Path) -> None:
    """Of a smear whose other cell waits, one is no class: the other can be drawn, and both are on the test's side then."""
    table = pools(site).table()
    free = table[table["pool"] == "unlabelled"].groupby("group")["sha256"].apply(list)
    pairs = [cells for cells in free if len(cells) == 2 and not set(cells) & set(read_queue(site)["sha256"])]
    for one, _ in pairs:
        take_in(site, answered({one: "Smudge"}), 1)
    assert fresh_cells.draw(site, len(pairs))["drawn"] == len(pairs), "each of the others"
    assert set(pools(site).drawn()["sha256"]) == {other for _, other in pairs}
    assert set(pools(site).none_of_five()["side"]) == {"test"}
    _, drawn = pairs[1]
    take_in(site, answered({drawn: "Blast"}), 1)
    assert drawn not in set(fresh_cells.waiting(site)["sha256"]), "what was drawn may be no class, too"
    assert set(pools(site).none_of_five()["side"]) == {"test"}
    one, other = pairs[0]
    take_in(site, answered({other: "Basophil"}), 1)
    decide(site, one, "Monocyte", "Ada", "not smudged so badly", 1)
    assert where(site, one) == ("test", "Monocyte")
    assert where(site, other) == ("test", "Basophil")


ANSWERS = st.sampled_from([*CLASSES[:3], "Smudge", "Band", "not a leukocyte"])
TIMES = st.sampled_from(["", "2026-11-20T08:00:00Z", "2026-11-21T08:00:00Z", "2026-11-22T08:00:00Z"])
STEPS = st.lists(
    st.tuples(st.integers(0, 7), ANSWERS, st.sampled_from(["Ada", "Ben", "oracle"]), TIMES, st.booleans()), min_size=1, max_size=6
)


@pytest.mark.parametrize("examples", [3, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_whatever_the_order_no_pool_has_it_as_a_class(filled: Path, tmp_path: Path, examples: int) -> None:
    """Answers, older ones, taken back, taken back again, of people and of the oracle, for cells of every pool."""

    @settings(max_examples=examples, deadline=None)
    @given(steps=STEPS)
    def check(steps: list[Any]) -> None:
        answer_and_check(filled, tmp_path, steps)

    check()


def answer_and_check(filled: Path, tmp_path: Path, steps: list[Any]) -> None:
    site = tmp_path / "site"
    shutil.rmtree(site, ignore_errors=True)
    shutil.copytree(filled, site)
    whole = pools(site)
    cells = [whole.frames[name]["sha256"].iloc[place] for name in whole.frames for place in (0, 1)]
    sides = dict(zip(cells, ["train"] * 4 + ["validation"] * 2 + ["test"] * 2, strict=True))
    count = len(whole.table())
    for place, answer, by, at, decided in steps:
        take_in(site, answered({cells[place]: answer}, by, at), 1, decided=decided and by != "oracle")
        after = pools(site)  # reading checks that no cell is in two pools and no group on two sides
        out = after.none_of_five().set_index("sha256")
        assert dict(out["answer"]) == dict(standing(read_none_of_five(site))[["sha256", "label"]].to_numpy())
        in_classes = pd.concat([after.frames[name] for name in ("labelled", "validation", "test")])
        assert not set(out.index) & set(in_classes["sha256"])
        assert set(in_classes["label"]) <= set(CLASSES)
        assert not set(out.index) & set(usable_pools(site).table()["sha256"])
        assert all(out["side"][sha256] == sides[sha256] for sha256 in out.index)
        assert len(after.table()) == count
        now = after.table().set_index("sha256")
        homes = {"train": {"labelled", "unlabelled"}, "validation": {"validation", "unlabelled"}, "test": {"test", "unlabelled"}}
        assert all(now["pool"][sha256] in homes[side] for sha256, side in sides.items())
        check_replayed(site)


def test_kinds_are_the_site_s(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.yaml").write_text("labelling:\n  further_kinds:\n    - {name: Hairy cell, key: m}\n")
    monkeypatch.setenv("WBC_SITE_FILE", str(tmp_path / "site.yaml"))
    assert kinds() == ("Hairy cell", "not a leukocyte")
    first, *_ = read_queue(site)["sha256"]
    assert take_in(site, answered({first: "Hairy cell"}), 1).none_of_five == 1
    monkeypatch.delenv("WBC_SITE_FILE")
    assert take_in(site, answered({first: "Hairy cell"}), 1).refused[0].reason.startswith("'Hairy cell' is not one of")
    assert status(site)["none_of_five"] == {"Hairy cell": 1}, "what was said stays said"


# --- the test of the out-of-distribution score -----------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_says_how_many_of_them_the_score_flags(tmp_path: Path) -> None:
    root = tmp_path / "site"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copyfile(template(name), root / name)
    manifest = pd.read_csv(write_cells(tmp_path / "cells", 160, seed=1, size=48)).drop(columns="group")
    manifest = manifest.sample(frac=1, random_state=0, ignore_index=True)  # cells of each smear on each side
    manifest["split"] = ["train"] * 20 + ["val"] * 110 + ["test"] * 30
    rng = np.random.default_rng(0)
    for number in range(6):  # dirt, of which no nucleus can be found
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(tmp_path / "cells" / f"dirt-{number}.png")
        manifest.loc[len(manifest)] = {"path": f"dirt-{number}.png", "label": "", "split": "train"}
    manifest.to_csv(tmp_path / "cells/manifest.csv", index=False)
    ingest(tmp_path / "cells/manifest.csv", root / "data", read_params(root / "params.yaml"))
    put_model(root)
    assert "out_of_distribution" not in evaluate(root)
    table = pools(root).table().set_index("path")["sha256"]
    dirt = {table[f"dirt-{number}.png"]: "Artefact" for number in range(6)}
    whole = dict.fromkeys(pools(root).frames["validation"]["sha256"].iloc[:10], "Band")
    take_in(root, answered(dirt | whole), 1)
    evaluate(root)
    both = json.loads((root / "metrics.json").read_text())["out_of_distribution"]
    found, false_alarms = both["none_of_five"], both["test"]
    assert (false_alarms["n"], false_alarms["flagged"] < 0.5) == (30, True)
    assert (found["n"], found["by_answer"]["Artefact"]["n"], found["by_answer"]["Band"]["n"]) == (16, 6, 10)
    assert found["by_answer"]["Artefact"]["flagged"] == 1.0
    assert found["by_answer"]["Band"]["flagged"] < 0.5, "these are cells that the densities were made of"
    low, high = found["interval"]
    assert 0 < low < found["flagged"] < high < 1


def put_model(root: Path) -> None:
    """An untrained network as the candidate, whose out-of-distribution score knows the validation pool."""
    network = AttentionResNet18("none", False, len(CLASSES), "batch")
    card = ModelCard(
        version="untrained",
        input_size=32,
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
        architecture=Architecture(attention="none", lossnet=False),
    )
    save_model(root / "models/candidate", network, card)
    network, card = load_model(root / "models/candidate")
    frame = pools(root).frames["validation"]
    decoded = decoded_cells(root, card.input_size, card.view)
    seen = predict(network, decoded.batches(frame["sha256"].tolist(), 64))
    known = fit_out_of_distribution(seen, label_indices(frame["label"].tolist()), decoded.appearance(frame["sha256"].tolist()))
    assert known is not None
    save_model(root / "models/candidate", network, card.model_copy(update={"out_of_distribution": known}))
