"""The gate: its statistics by hand-computed cases and properties, its rules, its memory, and the promotion itself."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.retraining import gate
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.files import file_sha256
from wbc_model.core.model_card import Architecture, ModelCard, Normalisation, read_card
from wbc_model.network.card_page import write_card
from wbc_model.params import GateParams

RULES = GateParams(recall_floor=dict.fromkeys(CLASSES, 0.5), max_recall_drop=0.1, max_accuracy_drop=0.02, alpha=0.05)


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [
        (0, 0, 1.0),  # the models never differ
        (1, 0, 0.5),  # one coin
        (5, 0, 1 / 32),
        (0, 5, 1.0),
        (8, 2, (45 + 10 + 1) / 1024),  # P(X >= 8 | 10, 1/2)
        (2, 8, 1 - (1 + 10) / 1024),
        (3, 3, 1 - (1 + 6 + 15) / 64),
    ],
)
def test_mcnemar_by_hand(lost: int, won: int, expected: float) -> None:
    assert gate.mcnemar_worse(lost, won) == pytest.approx(expected)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_binomial_tail(lost: int, won: int) -> None:
    total = lost + won
    tail = sum(math.comb(total, heads) for heads in range(lost, total + 1)) / 2**total
    assert gate.mcnemar_worse(lost, won) == pytest.approx(tail)
    assert gate.mcnemar_worse(lost + 1, won) <= gate.mcnemar_worse(lost, won) + 1e-12
    assert gate.mcnemar_worse(lost, won + 1) >= gate.mcnemar_worse(lost, won) - 1e-12


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_a_comparison_counts_pairs(pairs: list[tuple[bool, bool]]) -> None:
    champion, challenger = (np.array(column) for column in zip(*pairs, strict=True))
    seen = gate.compare(champion, challenger)
    assert seen.lost == sum(a and not b for a, b in pairs)
    assert seen.won == sum(b and not a for a, b in pairs)
    assert seen.champion_accuracy - seen.challenger_accuracy == pytest.approx((seen.lost - seen.won) / len(pairs))


def frame(wrong: dict[str, int], each: int = 50) -> pd.DataFrame:
    """Predictions of `each` cells a class, of which the last `wrong[class]` are taken for another class."""
    rows = []
    for index, name in enumerate(CLASSES):
        other = CLASSES[(index + 1) % len(CLASSES)]
        for number in range(each):
            rows.append([f"{name}{number}", name, other if number >= each - wrong.get(name, 0) else name])
    return pd.DataFrame(rows, columns=["sha256", "label", "predicted"])


def test_the_first_champion_needs_the_floors_and_nothing_else() -> None:
    good = gate.decide(frame({"Monocyte": 25}), None, RULES)
    assert good.promoted
    assert "first champion" in good.reason
    bad = gate.decide(frame({"Monocyte": 26}), None, RULES)
    assert not bad.promoted
    assert bad.reasons == ["recall of Monocyte 48.0% is below its floor 50.0%"]


def test_an_equal_challenger_is_promoted_and_says_how_it_was_compared() -> None:
    decision = gate.decide(frame({"Basophil": 2}), frame({"Basophil": 2}), RULES)
    assert decision.promoted
    assert "McNemar p = 1" in decision.reason
    assert decision.comparison is not None
    assert decision.comparison.cells == 250


def test_a_significantly_worse_challenger_is_refused() -> None:
    # 5 cells lost, none won: p = 1/32 < 0.05, though the accuracy drop of 2 % is allowed.
    decision = gate.decide(frame({"Basophil": 5}), frame({}), RULES)
    assert not decision.promoted
    assert len(decision.reasons) == 1
    assert "5 cells lost, 0 won of 250" in decision.reason


def test_a_drop_of_accuracy_is_refused_even_where_it_is_not_significant() -> None:
    # 8 lost, 2 won: p = 56/1024 = 0.0547; the drop is 6 of 250, 2.4 %.
    champion = frame({"Lymphocyte": 17, "Monocyte": 17})
    challenger = frame({"Basophil": 4, "Eosinophil": 4, "Lymphocyte": 16, "Monocyte": 16})
    decision = gate.decide(challenger, champion, RULES)
    assert not decision.promoted
    assert any("at most 2.00% is allowed" in reason for reason in decision.reasons)


def test_a_class_that_fell_too_far_is_refused_though_the_whole_is_better() -> None:
    decision = gate.decide(frame({"Monocyte": 8}), frame({"Basophil": 10, "Monocyte": 2}), RULES)
    assert decision.comparison is not None
    assert decision.comparison.challenger_accuracy > decision.comparison.champion_accuracy
    assert decision.reasons == ["recall of Monocyte fell from 96.0% to 84.0%, by more than the 10.0% allowed"]


def test_a_fall_by_exactly_the_margin_is_allowed() -> None:
    assert gate.decide(frame({"Monocyte": 5, "Basophil": 0}), frame({"Basophil": 5}), RULES).promoted


def test_a_class_without_test_cells_cannot_show_its_floor() -> None:
    cells = frame({})
    decision = gate.decide(cells[cells["label"] != "Basophil"], None, RULES)
    (reason,) = decision.reasons
    assert reason.startswith("the test pool has no Basophil to measure its recall on, which gate.recall_floor asks for")


def test_cells_are_paired_by_sha256_whatever_their_order() -> None:
    champion = frame({"Basophil": 5}).sample(frac=1, random_state=0)
    decision = gate.decide(frame({"Basophil": 5}), champion, RULES)
    assert decision.comparison is not None
    assert (decision.comparison.lost, decision.comparison.won) == (0, 0)


def test_a_test_pool_is_its_cells() -> None:
    assert gate.test_pool_id(["b", "a"]) == gate.test_pool_id(["a", "b"])
    assert gate.test_pool_id(["a", "b"]) != gate.test_pool_id(["a", "b", "c"])


def test_decisions_are_remembered_whole(tmp_path: Path) -> None:
    first = gate.Decision(False, ["a, b", 'and "c"'], test_pool="t", asked_before=0, challenger="1")
    gate.note_decision(tmp_path, "one", first)
    log = tmp_path / gate.LOG
    log.write_text(log.read_text() + "two,t,1,tor")  # a line torn by a crash
    assert [row["retraining"] for row in gate.read_log(tmp_path)] == ["one"]
    gate.note_decision(tmp_path, "two", gate.Decision(True, ["fine"], test_pool="t", asked_before=1, challenger="2"))
    rows = gate.read_log(tmp_path)
    assert [(row["retraining"], row["promoted"], row["reason"]) for row in rows] == [
        ("one", "no", 'a, b; and "c"'),
        ("two", "yes", "fine"),
    ]


def test_a_kept_decision_comes_back_as_it_was(tmp_path: Path) -> None:
    assert gate.kept_decision(tmp_path) is None
    decision = gate.decide(frame({"Basophil": 5}), frame({}), RULES)
    gate.keep_decision(tmp_path, "key", decision)
    assert gate.kept_decision(tmp_path) == ("key", decision)
    (tmp_path / ".wbc/gate.json").write_text("{")
    with pytest.raises(WbcError, match="damaged"):
        gate.kept_decision(tmp_path)


def model(directory: Path, weights: bytes) -> Path:
    directory.mkdir(parents=True)
    for name in ("weights.safetensors", "model.onnx"):
        (directory / name).write_bytes(weights)
    digests = {name: file_sha256(directory / name) for name in ("weights.safetensors", "model.onnx")}
    normal = Normalisation(mean=(0, 0, 0), std=(1, 1, 1))
    architecture = Architecture(attention="none", lossnet=False)
    write_card(
        directory,
        ModelCard(version="v", created_at="", input_size=32, normalisation=normal, architecture=architecture, sha256=digests),
    )
    return directory


def test_promotion_copies_the_candidate_with_its_test_metrics(tmp_path: Path) -> None:
    candidate, champion = model(tmp_path / "models/candidate", b"new"), model(tmp_path / "models/champion", b"old")
    gate.promote(candidate, champion, {"accuracy": 0.9})
    card = read_card(champion)
    assert card.metrics["test"] == {"accuracy": 0.9}
    assert (champion / "weights.safetensors").read_bytes() == b"new"
    assert read_card(candidate).metrics == {}
    assert sorted(path.name for path in champion.parent.iterdir()) == ["candidate", "champion"]


def test_a_promotion_killed_between_its_renames_is_mended(tmp_path: Path) -> None:
    gate.mend(tmp_path / "champion")  # before the first one there is nothing to mend
    champion = model(tmp_path / "champion", b"old")
    champion.rename(tmp_path / ".champion.old")
    gate.mend(champion)
    assert read_card(champion)
    model(tmp_path / ".champion.old", b"older")  # killed later: the new one is in place, the old one not yet gone
    gate.mend(champion)
    assert (champion / "weights.safetensors").read_bytes() == b"old"
