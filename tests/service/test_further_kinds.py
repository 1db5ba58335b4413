"""Cells of a further kind: beside the differential, to 100 leukocytes, and never one of its five classes; and a German report."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
from fhir.resources.R4B.bundle import Bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from specimens import CONFUSION, MODEL, PERSON, reported, several, site
from sqlalchemy import select

from serving.contract import differential as said
from serving.contract.differential import Circumstances, Differential, count_differential
from serving.contract.words import words_of
from serving.formats import fhir
from serving.formats.hl7 import Signed, oru_r01
from serving.formats.pdf import report_pdf
from serving.reports.answers import whole
from serving.reports.errors import UnknownLabel
from serving.reports.review import Action, correct, find, sign, undo
from serving.reports.store import Store
from serving.reports.tables import Report
from wbc_model.core.classes import CLASSES

NOW = datetime(2026, 11, 23, 9, 30, 1, tzinfo=UTC)
KINDS = [kind.name for kind in site().labelling.further_kinds]
LABELS = ["Neutrophil"] * 80 + ["Lymphocyte"] * 19
LEUKOCYTES = ("Band", "Immature granulocyte", "Blast")
NO_ERRORS = np.eye(5, dtype=np.int64) * 500


def counted(further: list[str], labels: list[str] = LABELS) -> Differential:
    return count_differential(labels, CONFUSION, site(), Circumstances(wbc_count=4.0, further=further))


@settings(max_examples=40, deadline=None)
@given(further=st.lists(st.sampled_from([*KINDS, "No kind any more"]), max_size=20))
def test_all_shares_are_of_all_leukocytes(further: list[str]) -> None:
    alone, beside = counted([]), counted(further)
    assert {name: of.count for name, of in beside.further.items()} == {name: further.count(name) for name in set(further)}
    leukocytes = len(LABELS) + sum(name in LEUKOCYTES for name in further)
    assert (beside.cells, beside.leukocytes) == (leukocytes, leukocytes if further else None)
    assert all(of.per_100 == pytest.approx(100 * of.count / leukocytes) for of in beside.further.values())
    for name, share in beside.classes.items():
        assert (share.count, share.percent) == (LABELS.count(name), pytest.approx(100 * LABELS.count(name) / leukocytes))
        assert share.absolute is not None
        assert share.absolute.value == pytest.approx(4.0 * share.percent / 100)
    if leukocytes == len(LABELS):  # what is no leukocyte changes nothing
        assert beside.model_copy(update={"further": {}, "leukocytes": None}) == alone


def test_neutrophils_beside_blasts() -> None:
    """By hand: 50 leukocytes per nanolitre, of 100 cells 90 are blasts and 5 neutrophils."""
    labels = ["Neutrophil"] * 5 + ["Lymphocyte"] * 5
    of = count_differential(labels, NO_ERRORS, site(), Circumstances(wbc_count=50.0, further=["Blast"] * 90))
    neutrophils = of.classes["Neutrophil"]
    assert (neutrophils.printed, neutrophils.absolute and neutrophils.absolute.printed) == ("5.0", "2.50")
    assert neutrophils.interval.low == pytest.approx(100 * beta.ppf(0.025, 5, 96))
    assert neutrophils.interval.high == pytest.approx(100 * beta.ppf(0.975, 6, 95))
    assert neutrophils.corrected is not None
    assert neutrophils.corrected.low < 5 < neutrophils.corrected.high < 15
    assert neutrophils.corrected.median == pytest.approx(5, abs=0.6)
    assert of.classes["Monocyte"].corrected is not None
    assert of.classes["Monocyte"].corrected.high < 8, "of ten cells it would be thirty"
    assert (of.kind, of.by_person, of.further["Blast"].printed) == ("differential", 90, "90.0")


def test_without_a_leukocyte_there_is_no_rate() -> None:
    [platelets] = counted(["Platelet"], []).further.values()
    assert (platelets.count, platelets.per_100, platelets.printed) == (1, None, "")


def test_a_person_names_a_cell_so_and_takes_it_back(store: Store) -> None:
    report = reported(store, site(), several("Neutrophil", 99))
    with pytest.raises(UnknownLabel, match="'Erythrocyte' is no class and none of the site's further kinds: give Basophil"):
        correct(store, Action(report, PERSON), 0, "Erythrocyte", site())
    for position, kind in enumerate(["Erythroblast", "Band", "Erythroblast"]):
        correct(store, Action(report, PERSON), position, kind, site())
    found = whole(find(store, report), site())
    assert found.differential.cells == 97, "96 neutrophils and the band"
    assert {name: (of.count, of.printed) for name, of in found.differential.further.items()} == {
        "Band": (1, "1.0"),  # to 96 neutrophils and the band itself
        "Erythroblast": (2, "2.1"),
    }
    assert [cell.label for cell in found.cells[:4]] == ["Erythroblast", "Band", "Erythroblast", "Neutrophil"]
    assert found.corrected == 3
    for position in range(3):
        undo(store, Action(report, PERSON), position, site())
    found = whole(find(store, report), site())
    assert (found.differential.cells, found.differential.further, found.differential.leukocytes) == (99, {}, None)


def test_a_report_from_before_is_read_as_it_was(store: Store) -> None:
    report = reported(store, site(), several("Neutrophil", 12))
    with store.writing() as session:
        row = session.scalars(select(Report)).one()
        row.differential = {name: value for name, value in row.differential.items() if name not in ("further", "leukocytes")}
    assert whole(find(store, report), site()).differential.further == {}
    signed = whole(sign(store, Action(report, PERSON), site()), site())
    assert "further" not in signed.signatures[0].model_dump(exclude_unset=True)["differential"]


def test_where_all_cells_are_of_further_kinds_there_is_nothing_to_sign(store: Store) -> None:
    report = reported(store, site(), several("Neutrophil", 2))
    for position in range(2):
        correct(store, Action(report, PERSON), position, "Erythroblast", site())
    assert [block.kind for block in whole(find(store, report), site()).blocked] == ["no_cells"]


def test_a_specimen_of_blasts_is_signed_and_told(store: Store) -> None:
    report = reported(store, site(), several("Neutrophil", 100), 80.0)
    for position in range(100):
        correct(store, Action(report, PERSON), position, "Blast", site())
    signed = whole(sign(store, Action(report, PERSON), site()), site())
    of = signed.differential
    assert (of.kind, of.cells, of.by_person, of.further["Blast"].printed) == ("differential", 100, 100, "100.0")
    assert {(share.printed, share.absolute and share.absolute.printed) for share in of.classes.values()} == {("0.0", "0.00")}
    assert of.classes["Neutrophil"].flag in ("low", "critical_low")
    assert of.correction.explanation == said.PERSON_ONLY
    document = json.dumps(fhir.bundle(of, fhir.Reported(model=MODEL, specimen_id="S", issued=NOW, status="final"), site()))
    assert Bundle.model_validate_json(document).get_resource_type() == "Bundle"
    text = oru_r01(of, Signed("0" * 32, "final", "S", MODEL, "Dr. Ada", NOW, NOW, 100), "A" * 20, site())
    values = {fields[3].split("^")[1]: fields[5] for line in text.split("\r") if (fields := line.split("|"))[0] == "OBX"}
    assert values["Neutrophils/100 leukocytes in Blood"] == "0.0"
    assert "Image classification, each cell reviewed by a person" in text


def test_fhir_and_hl7_say_it_where_there_is_a_term() -> None:
    differential = counted(["Erythroblast", "Erythroblast", "Platelet"])
    of = fhir.Reported(model=MODEL, specimen_id="S", issued=NOW, status="final")
    document = json.dumps(fhir.bundle(differential, of, site()))
    assert Bundle.model_validate_json(document).get_resource_type() == "Bundle"
    resources = [entry["resource"] for entry in json.loads(document)["entry"]]
    beside = [one for one in resources if one.get("valueQuantity", {}).get("code") == "/100{WBCs}"]
    assert [(one["code"].get("coding", [{}])[0].get("code"), one["valueQuantity"]["value"]) for one in beside] == [
        ("19048-8", 2.0),  # 2 to 99 leukocytes
        (None, 1.0),
    ]
    assert {one["method"]["text"] for one in beside} == {said.NAMED_BY_PERSONS}
    text = oru_r01(differential, Signed("0" * 32, "final", "S", MODEL, "Dr. Ada", NOW, NOW, 0), "A" * 20, site())
    last = [line.split("|") for line in text.split("\r") if line.startswith("OBX")][-1]
    assert (last[3].split("^")[0], last[5], last[6].split("^")[0]) == ("19048-8", "2.0", "/100{WBCs}")
    assert last[17] == f"^{said.NAMED_BY_PERSONS}"
    assert "Platelet" not in text
    few = fhir.bundle(counted(["Erythroblast"], ["Neutrophil"]), of, site())
    assert "/100{WBCs}" not in json.dumps(few)


# ---------------------------------------------------------------- the printed report


def test_the_printed_report_has_it_in_the_language_of_the_site(store: Store, written: list[str]) -> None:
    german = site().model_copy(update={"language": "de"})
    report = reported(store, german, several("Neutrophil", 99), 6.5)
    correct(store, Action(report, PERSON), 0, "Erythroblast", german)
    report_pdf(whole(find(store, report), german), german)
    assert "VORLÄUFIG, NICHT UNTERSCHRIEBEN" in written
    assert "Neben dem Differenzialblutbild gezählt (Leukozyten: 98)" in written
    at = written.index("Erythroblasten")
    assert written[at : at + 3] == ["Erythroblasten", "1", "1,0"]
    at = written.index("Neutrophile")
    assert written[at : at + 3] == ["Neutrophile", "98", "100,0"]
    assert "6,5 × 10³/µl" in written
    english = [text for text in written if any(word in text for word in ("cells", "Signed", "reviewed", "limits"))]
    assert english == []


def test_the_words_of_a_report_say_what_the_service_says() -> None:
    words = words_of("en")
    assert words("pdf.warning.rendered") == said.RENDERED
    assert words("pdf.warning.site_unknown") == words("pdf.correction.site_unknown") == said.SITE_UNKNOWN
    assert words("pdf.correction.person_only") == said.PERSON_ONLY
    assert words("pdf.correction.no_cell") == said.NO_CELL
    applied = counted([]).correction
    assert words("pdf.correction.applied", cells=applied.validation_cells, draws=said.DRAWS) == applied.explanation
    assert counted([]).note == words("pdf.note", count=99, to_review=0)
    assert [words.kind(name) for name in CLASSES] == list(CLASSES)
