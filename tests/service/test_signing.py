"""What may be signed, and what a report says about who reviewed it: from the record, not from its status."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fhir.resources.R4B.bundle import Bundle
from specimens import MODEL, PERSON, rejected, reported, several, site

from serving.contract.differential import RENDERED, Circumstances, Differential, count_differential, how_reviewed
from serving.contract.site import Site
from serving.formats import fhir
from serving.formats.hl7 import Signed, oru_r01
from serving.formats.pdf import report_pdf
from serving.reports.answers import whole
from serving.reports.errors import ChangedMeanwhile, NotSignable
from serving.reports.review import Action, correct, find, sign
from serving.reports.store import Store, sqlite_url
from serving.reports.tables import Report
from serving.upkeep.open_reports import OpenReports, follow_all

NOW = datetime(2026, 11, 23, 9, 30, 1, tzinfo=UTC)
HALF_MARKED = several("Neutrophil", 100) + several("Lymphocyte", 17, review=True)


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    return Store.open(sqlite_url(tmp_path / "service.db"))


def kinds(store: Store, report: str, of: Site) -> list[str]:
    """Why it cannot be signed, as it is said before and as signing is refused."""
    blocked = [block.kind for block in whole(find(store, report), of).blocked]
    if blocked:
        with pytest.raises(NotSignable) as caught:
            sign(store, Action(report, PERSON), of)
        assert [block.kind for block in caught.value.blocked] == blocked
    return blocked


def test_what_is_marked_must_be_reviewed_before_a_signature(kept: Store) -> None:
    of, report = site(review="marked"), reported(kept, site(review="marked"), HALF_MARKED)
    assert kinds(kept, report, of) == ["unreviewed"]
    for position in range(100, 117):
        assert kinds(kept, report, of) == ["unreviewed"]
        correct(kept, Action(report, PERSON), position, "Lymphocyte", of)
    assert kinds(kept, report, of) == []
    assert sign(kept, Action(report, PERSON), of).status == "final"


def test_a_site_may_ask_for_all_cells_or_for_none(kept: Store) -> None:
    report = reported(kept, site(review="all"), [*several("Neutrophil", 12), rejected()])
    assert kinds(kept, report, site(review="marked")) == []
    assert kinds(kept, report, site(review="all")) == ["unreviewed"]
    assert whole(find(kept, report), site(review="all")).to_review == 12
    for position in range(12):
        correct(kept, Action(report, PERSON), position, None if position == 3 else "Neutrophil", site(review="all"))
    assert kinds(kept, report, site(review="all")) == []
    other = reported(kept, site(review="nothing"), HALF_MARKED)
    assert kinds(kept, other, site(review="nothing")) == []


def test_a_report_by_a_model_of_drawn_cells_cannot_be_signed(kept: Store) -> None:
    report = reported(kept, site(), several("Neutrophil", 12))
    with kept.writing() as session:
        session.get_one(Report, report).rendered = True
    assert kinds(kept, report, site()) == ["rendered_model"]


def said(differential: Differential, status: str = "final") -> set[str]:
    """Everything that a FHIR Bundle and an HL7 message say of how the result came about."""
    of = site()
    stated = fhir.Reported(model=MODEL, specimen_id="S", issued=NOW, status=status, performer="Dr. Ada")  # type: ignore[arg-type]
    document = fhir.bundle(differential, stated, of)
    assert Bundle.model_validate_json(json.dumps(document))
    methods = {entry["resource"]["method"]["text"] for entry in document["entry"] if "method" in entry["resource"]}
    text = oru_r01(differential, Signed("r", "final", "S", MODEL, "Dr. Ada", NOW, NOW, 0), "X", of)
    return {method.split(", ", 1)[1] for method in methods} | {
        line.split("|")[17].split(", ", 1)[1] for line in text.split("\r") if line.startswith("OBX")
    }


@pytest.mark.parametrize(
    ("reviewed", "left", "words"),
    [
        (0, 117, "not reviewed by a person, 117 still to be reviewed"),
        (2, 117, "2 of 119 cells reviewed by a person, 117 still to be reviewed"),
        (119, 0, "each cell reviewed by a person"),
        (5, 0, "5 of 119 cells reviewed by a person"),
    ],
)
def test_reviewed_by_a_person_is_said_of_those_cells_that_were(reviewed: int, left: int, words: str) -> None:
    by_person = [number < reviewed for number in range(119)]
    differential = count_differential(
        ["Neutrophil"] * 119, None, site(), Circumstances(to_review=left, by_person=by_person, site_unknown=True)
    )
    assert how_reviewed(differential) == words
    assert said(differential) == {words}


def test_the_pdf_says_how_many_were_reviewed(kept: Store, written: list[str]) -> None:
    of, report = site(minimum_cells=100), reported(kept, site(minimum_cells=100), HALF_MARKED)
    correct(kept, Action(report, PERSON), 0, "Monocyte", of)
    report_pdf(whole(sign(kept, Action(report, PERSON), of), of), of)
    assert written[written.index("Reviewed by a person") + 1] == "1 of 117 cells"
    assert written[written.index("Still to be reviewed") + 1] == "17 cells"
    everything = "\n".join(written)
    assert "by a neural network, 1 of 117 cells reviewed by a person, 17 still to be reviewed." in everything
    assert "a qualified person reviews" not in everything


def test_of_drawn_cells_the_formats_say_so_and_no_message_is_made(kept: Store, written: list[str]) -> None:
    differential = count_differential(["Neutrophil"] * 12, None, site(), Circumstances(rendered=True))
    stated = fhir.Reported(model=MODEL, specimen_id="S", issued=NOW, status="preliminary")
    document = fhir.bundle(differential, stated, site())
    assert Bundle.model_validate_json(json.dumps(document))
    for resource in (document, *(entry["resource"] for entry in document["entry"])):
        assert resource["meta"]["security"][0]["code"] == "HTEST", resource["resourceType"]
        if resource["resourceType"] == "Observation":
            assert resource["note"] == [{"text": RENDERED}]
    assert RENDERED in document["entry"][0]["resource"]["conclusion"]
    with pytest.raises(ValueError, match="drawn cells"):
        oru_r01(differential, Signed("r", "final", "S", MODEL, "Dr. Ada", NOW, NOW, 0), "X", site())
    answer = whole(find(kept, reported(kept, site(), several("Neutrophil", 12))), site())
    answer.differential.rendered = True
    report_pdf(answer, site())
    assert RENDERED in written


def test_all_formats_print_the_same_number_and_the_same_range(kept: Store, written: list[str]) -> None:
    of = site(minimum_cells=100)
    report = whole(find(kept, reported(kept, of, several("Eosinophil", 31) + several("Neutrophil", 482), 7.4)), of)
    eosinophils = report.differential.classes["Eosinophil"]
    assert eosinophils.absolute is not None
    assert (eosinophils.printed, eosinophils.flag) == ("6.04", "high")
    report_pdf(report, of)
    row = written.index("Eosinophil")
    assert (written[row + 2], *written[row + 5 : row + 7]) == ("6.04", "1 – 6", "H  high")
    text = oru_r01(report.differential, Signed("r", "final", "S", MODEL, "Dr. Ada", NOW, NOW, 0), "X", of)
    observed = {line.split("|")[3].split("^")[0]: line.split("|") for line in text.split("\r") if line.startswith("OBX")}
    code, count = of.loinc.percent["Eosinophil"], of.loinc.absolute["Eosinophil"]
    assert (observed[code][5], observed[code][7], observed[code][8]) == ("6.04", "1-6", "H")
    assert observed[count][5] == eosinophils.absolute.printed == "0.45"
    stated = fhir.Reported(model=MODEL, specimen_id="S", issued=NOW, status="preliminary")
    document = fhir.bundle(report.differential, stated, of)
    values = {
        entry["resource"]["code"]["coding"][0]["code"]: entry["resource"]["valueQuantity"]["value"]
        for entry in document["entry"]
        if entry["resource"]["resourceType"] == "Observation"
    }
    assert (values[code], values[count]) == (6.04, 0.45)


# --- the settings of the site change while reports are open


def test_open_reports_follow_the_settings_of_the_site(store: Store) -> None:
    """What is left to review, and whether it is a differential at all, is by the settings that hold; what is signed stays."""
    before, after = site(review="all"), site(minimum_cells=50)
    report, signed = (reported(store, before, several("Neutrophil", 20)) for _ in range(2))
    sign(store, Action(signed, PERSON), site())
    kept, was = find(store, signed).differential, whole(find(store, report), before)
    assert (was.version, was.to_review, was.differential.kind) == (1, 20, "differential")
    assert [follow_all(store, of) for of in (before, after, after)] == [0, 1, 0]
    now = whole(find(store, report), after)
    assert (now.version, now.to_review, now.differential.kind) == (2, 0, "too_few_cells")
    assert (find(store, signed).differential, find(store, signed).version) == (kept, 2)
    with pytest.raises(ChangedMeanwhile):
        sign(store, Action(report, PERSON, 1), after)
    assert sign(store, Action(report, PERSON, 2), after).differential["to_review"] == 0


def test_a_service_starts_with_the_settings_that_hold(store: Store) -> None:
    report = reported(store, site(review="all"), several("Neutrophil", 20))
    of = site()
    thread = OpenReports(store, of)
    thread.join()
    assert whole(find(store, report), of).to_review == 0
