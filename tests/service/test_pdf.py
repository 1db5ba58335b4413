"""The page to print: what is written on it, and that the same report gives the same bytes."""

import hashlib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from live import ROOT, clean_environment
from specimens import CONFUSION, PERSON, SPECIMEN, reported, several, site

from serving.differential import SITE_UNKNOWN
from serving.pdf import report_pdf
from serving.report_schemas import ReportAnswer, whole
from serving.review import Person, correct, find, sign
from serving.schemas import Result
from serving.store import Store, sqlite_url

RESULTS: list[Result] = [*several("Neutrophil", 70), *several("Lymphocyte", 30, review=True)]


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    return Store.open(sqlite_url(tmp_path / "service.db"))


def signed(store: Store, by: str = "Dr. Ada") -> ReportAnswer:
    of = site(minimum_cells=100)
    report = reported(store, of, RESULTS, 10.0)
    correct(store, report, 70, "Monocyte", PERSON, 1, False, of)
    correct(store, report, 71, "Lymphocyte", PERSON, 2, False, of)
    return whole(sign(store, report, Person(by, "ward"), 3, of), of)


def test_it_says_all_of_the_report(kept: Store, written: list[str]) -> None:
    assert report_pdf(signed(kept), site(minimum_cells=100)).startswith(b"%PDF-")
    row = written.index("Neutrophil")
    # 70 of 100: Clopper-Pearson 60.0 to 78.8; the range of the default site
    assert written[row : row + 4] == ["Neutrophil", "70", "70.0", "60.0 – 78.8"]
    assert written[row + 5 : row + 7] == ["40 – 80", ""]
    lymphocytes = written.index("Lymphocyte")
    assert written[lymphocytes + 1 : lymphocytes + 3] == ["29", "29.0"]
    eosinophils = written.index("Eosinophil")
    assert written[eosinophils + 6] == "L  low"
    absolute = written.index("Neutrophil", row + 1)
    assert written[absolute : absolute + 3] == ["Neutrophil", "7.00", "6.00 – 7.88"]
    for text in (SPECIMEN, "FINAL", "wbc tiny-1", "1 cell", "28 cells", "100 of 100 images", "10 × 10³/µL", "Dr. Ada"):
        assert text in written, text
    everything = "\n".join(written)
    assert f"Inverted confusion matrix of {CONFUSION.sum()} validation cells" in everything
    assert f"Final, {datetime.now(UTC):%Y-%m-%d}" in everything
    assert written[-written[::-1].index("Dr. Ada") - 2].startswith("Final, ")


def test_what_is_not_signed_says_so_and_what_was_amended_names_both(kept: Store, written: list[str]) -> None:
    of, report = site(minimum_cells=100), signed(kept)
    opened = whole(correct(kept, report.id, 0, "Basophil", PERSON, None, True, of), of)
    report_pdf(opened, of)
    assert "PRELIMINARY, NOT SIGNED" in written
    assert "Changed since it was signed: not valid until it is signed again." in written
    written.clear()
    report_pdf(whole(sign(kept, report.id, Person("Dr. Ben", "ward"), None, of), of), of)
    assert "AMENDED" in written
    who = [(text.split(",")[0], written[at + 1]) for at, text in enumerate(written) if text.startswith(("Final,", "Amended,"))]
    assert who == [("Final", "Dr. Ada"), ("Amended", "Dr. Ben")]


def test_too_few_cells_have_counts_and_no_percentages(kept: Store, written: list[str]) -> None:
    of = site(minimum_cells=500)
    report_pdf(whole(find(kept, reported(kept, of, RESULTS)), of), of)
    everything = "\n".join(written)
    assert "This is not a differential." in everything
    assert "Leukocyte differential" not in written
    row = written.index("Neutrophil")
    assert written[row : row + 2] == ["Neutrophil", "70"]
    assert "%" not in everything


def test_an_unknown_site_is_said(kept: Store, written: list[str]) -> None:
    report = signed(kept)
    report.differential.site_unknown = True
    report_pdf(report, site(minimum_cells=100))
    assert SITE_UNKNOWN in written


def test_names_are_whole_and_never_empty_boxes(kept: Store, written: list[str]) -> None:
    report = signed(kept, by="Zoë Łukaszewicz Παπαδόπουλος Иванов 张")
    report.specimen_id = "W" * 64
    report_pdf(report, site(minimum_cells=100))
    assert "Zoë Łukaszewicz Παπαδόπουλος Иванов [U+5F20]" in written
    assert "W" * 64 in written


def test_the_same_report_gives_the_same_bytes_in_another_process(kept: Store, tmp_path: Path) -> None:
    report, of = signed(kept), site(minimum_cells=100)
    (tmp_path / "report.json").write_text(report.model_dump_json())
    (tmp_path / "site.json").write_text(of.model_dump_json())
    code = (
        "import sys, hashlib; from pathlib import Path; from serving.pdf import report_pdf; from serving.site import Site\n"
        "from serving.report_schemas import ReportAnswer\n"
        "report = ReportAnswer.model_validate_json(Path(sys.argv[1], 'report.json').read_text())\n"
        "site = Site.model_validate_json(Path(sys.argv[1], 'site.json').read_text())\n"
        "print(hashlib.sha256(report_pdf(report, site)).hexdigest())"
    )
    environment = clean_environment(PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(report_pdf(report, of)).hexdigest()
