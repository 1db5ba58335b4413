"""Files of answers in which several people speak: who agrees, who does not, who is unsure, and who only a model is."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.exchange.given import Given, Vocabulary, read_answers

CELL = "ab" * 32
WORDS = Vocabulary(("Smudge", "not a leukocyte"), "unsure")


def annotation(label: str | None, by: object = 1, at: str = "2026-11-22T10:00:00.000000Z", **more: Any) -> dict[str, Any]:
    choice = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    return {"result": [choice] if label else [], "completed_by": by, "updated_at": at, **more}


def read(tmp_path: Path, *annotations: dict[str, Any], **more: Any) -> Given:
    """What a file says in which these are the annotations of one cell."""
    task = {"id": 3, "data": {"sha256": CELL}, "annotations": list(annotations), **more}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    return read_answers(tmp_path / "export.json", WORDS)


def one(given_: Given) -> tuple[str, str, str]:
    """The only answer of a file: what, by whom, and when."""
    (answer,) = given_.answers
    assert not given_.refused
    return answer.label, answer.by, answer.at


def test_those_who_agree_are_all_named(tmp_path: Path) -> None:
    later = "2026-11-23T10:00:00.5Z"
    found = read(tmp_path, annotation("Monocyte"), annotation("Monocyte", {"email": "ada@example.org"}, later))
    assert one(found) == ("Monocyte", "ada@example.org + label studio 1", "2026-11-23T10:00:00Z")


def test_those_who_disagree_are_refused_with_both_names(tmp_path: Path) -> None:
    (refused,) = read(tmp_path, annotation("Monocyte"), annotation("Smudge", 2)).refused
    assert refused.place == "task 3"
    assert refused.reason == (
        "Monocyte by label studio 1 and Smudge by label studio 2 disagree; agree on one first, or "
        f"`wbc labels decide {CELL[:12]} LABEL --by NAME --why REASON` makes one count"
    )


def test_a_later_annotation_of_the_same_person_counts_even_within_a_second(tmp_path: Path) -> None:
    changed = annotation("Basophil", 2, "2026-11-22T10:00:00.000001Z")
    assert one(read(tmp_path, changed, annotation("Monocyte", 2), annotation("Basophil")))[0] == "Basophil"
    assert read(tmp_path, annotation("Monocyte", 2), annotation("Basophil", 2)).refused, "at the same time"
    assert read(tmp_path, annotation("Monocyte", None), annotation("Basophil", None, changed["updated_at"])).refused


@pytest.mark.parametrize("at", ["2026", "2026-11", "2026Q4", "2026-02-30"])
def test_a_time_without_its_day_is_refused(tmp_path: Path, at: str) -> None:
    """Taken as the first day of that year, it would come before a label that it follows."""
    (refused,) = read(tmp_path, annotation("Monocyte", at=at)).refused
    assert refused.reason.startswith(f"{at!r} is no time: write it as ")
    assert one(read(tmp_path, annotation("Monocyte", at="20261122")))[2] == "2026-11-22T00:00:00Z"


def test_the_unsure_ask_on_and_stand_in_nobody_s_way(tmp_path: Path) -> None:
    alone = read(tmp_path, annotation("unsure"))
    assert (alone.answers, alone.refused, alone.unsure) == ([], [], 1)
    both = read(tmp_path, annotation("unsure"), annotation("Monocyte", 2))
    assert (one(both)[:2], both.unsure) == (("Monocyte", "label studio 2"), 0)
    then = read(tmp_path, annotation("Monocyte"), annotation("unsure", 1, "2026-11-22T11:00:00Z"))
    assert (then.answers, then.unsure) == ([], 1), "who was sure is no more"


def test_skipped_cancelled_and_predicted_are_no_answers(tmp_path: Path) -> None:
    skipped = read(tmp_path, annotation(None, was_cancelled=True))
    assert (skipped.answers, skipped.skipped) == ([], 1)
    cancelled = read(tmp_path, annotation("Monocyte", was_cancelled=True), annotation("Basophil", 2))
    assert (one(cancelled)[0], cancelled.skipped) == ("Basophil", 0)
    empty = read(tmp_path, annotation(None))
    assert (empty.answers, empty.refused, empty.skipped) == ([], [], 0)
    opinion = {"model_version": "wbc", "score": 0.9, "result": annotation("Monocyte")["result"]}
    predicted = read(tmp_path, predictions=[opinion])
    assert (predicted.answers, predicted.predicted) == ([], 1)
    assert read(tmp_path, annotation("Smudge"), predictions=[opinion]).predicted == 0


def minimal(tmp_path: Path, form: str, *rows: dict[str, Any]) -> Given:
    """The same in JSON_MIN or in the CSV of Label Studio: a row for each annotation."""
    if form == "json":
        (tmp_path / "min.json").write_text(json.dumps([{"id": 3, "sha256": CELL, **row} for row in rows]))
        return read_answers(tmp_path / "min.json", WORDS)
    lines = [",".join([CELL, *(str(row.get(name, "")) for name in ("label", "annotator", "updated_at"))]) for row in rows]
    (tmp_path / "min.csv").write_text("\n".join(["sha256,label,annotator,updated_at", *lines]) + "\n")
    return read_answers(tmp_path / "min.csv", WORDS)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_several_rows_of_one_cell_say_the_same_as_several_annotations(tmp_path: Path, form: str) -> None:
    ada = {"label": "Monocyte", "annotator": 1, "updated_at": "2026-11-22T10:00:00Z"}
    ben = {"label": "Monocyte", "annotator": 2, "updated_at": "2026-11-22T10:00:01Z"}
    assert one(minimal(tmp_path, form, ada, ben)) == ("Monocyte", "label studio 1 + label studio 2", "2026-11-22T10:00:01Z")
    (refused,) = minimal(tmp_path, form, ada, ben | {"label": "smudges"}).refused
    assert "Monocyte by label studio 1 and Smudge by label studio 2 disagree" in refused.reason
    assert refused.place == ("task 3" if form == "json" else "line 2, line 3")
    assert one(minimal(tmp_path, form, ada, ben | {"label": "Smudge", "annotator": 1}))[0] == "Smudge"
    assert minimal(tmp_path, form, ada | {"label": "unsure"}, {"annotator": 2}).unsure == 1


def test_a_sheet_may_hold_whole_images(tmp_path: Path) -> None:
    """Label Studio's CSV has the task's data in it, and so the image that we have put there."""
    (tmp_path / "export.csv").write_text(f'image,label,sha256\n"data:image/png;base64,{"A" * 300_000}",Monocyte,{CELL}\n')
    assert one(read_answers(tmp_path / "export.csv", WORDS))[0] == "Monocyte"


LABELS = st.sampled_from(["Monocyte", "Basophil", "Smudge", "unsure"])
SAID = st.lists(st.tuples(LABELS, st.sampled_from([1, 2, 3]), st.integers(0, 3), st.booleans()), max_size=6)


@given(said=SAID)
def test_an_answer_is_taken_where_all_who_are_sure_say_it_and_never_else(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int, int, bool]]
) -> None:
    found = read(
        tmp_path_factory.mktemp("said"),
        *(annotation(label, by, f"2026-11-22T10:00:0{at}Z", was_cancelled=gone) for label, by, at, gone in said),
    )
    assert len(found.answers) + len(found.refused) + found.unsure + found.skipped == bool(said)
    last: dict[int, set[str]] = {}
    for by in {by for _, by, _, gone in said if not gone}:
        newest = max(at for _, other, at, gone in said if other == by and not gone)
        last[by] = {label for label, other, at, gone in said if other == by and at == newest and not gone}
    clear = [next(iter(labels)) for labels in last.values() if len(labels) == 1]
    if len(clear) == len(last):  # each person's last word is known
        sure = set(clear) - {"unsure"}
        assert {answer.label for answer in found.answers} == (sure if len(sure) == 1 else set())
        assert bool(found.refused) == (len(sure) > 1)
    for answer in found.answers:
        assert answer.label != "unsure"
