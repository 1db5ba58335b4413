"""The page to print: what is written on it, and that the same report gives the same bytes."""

import hashlib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uharfbuzz as hb
from fpdf import FPDF
from live import ROOT, clean_environment
from specimens import CONFUSION, PERSON, SPECIMEN, reported, several, site

from serving.contract.differential import SITE_UNKNOWN
from serving.contract.report_schemas import ReportAnswer
from serving.contract.schemas import Result
from serving.formats.pdf import FONTS, report_pdf
from serving.reports.answers import whole
from serving.reports.review import Action, Person, correct, find, sign
from serving.reports.store import Store, sqlite_url

RESULTS: list[Result] = [*several("Neutrophil", 70), *several("Lymphocyte", 30, review=True)]


@pytest.fixture
def kept(tmp_path: Path) -> Store:
    return Store.open(sqlite_url(tmp_path / "service.db"))


def signed(store: Store, by: str = "Dr. Ada") -> ReportAnswer:
    of = site(minimum_cells=100)
    report = reported(store, of, RESULTS, 10.0)
    correct(store, Action(report, PERSON, 1), 70, "Monocyte", of)
    correct(store, Action(report, PERSON, 2), 71, "Lymphocyte", of)
    return whole(sign(store, Action(report, Person(by, "ward"), 3), of), of)


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
    opened = whole(correct(kept, Action(report.id, PERSON, amend=True), 0, "Basophil", of), of)
    report_pdf(opened, of)
    assert "PRELIMINARY, NOT SIGNED" in written
    assert "Changed since it was signed: not valid until it is signed again." in written
    written.clear()
    report_pdf(whole(sign(kept, Action(report.id, Person("Dr. Ben", "ward")), of), of), of)
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
        "import sys, hashlib; from pathlib import Path; from serving.formats.pdf import report_pdf\n"
        "from serving.contract.site import Site; from serving.contract.report_schemas import ReportAnswer\n"
        "report = ReportAnswer.model_validate_json(Path(sys.argv[1], 'report.json').read_text())\n"
        "site = Site.model_validate_json(Path(sys.argv[1], 'site.json').read_text())\n"
        "print(hashlib.sha256(report_pdf(report, site)).hexdigest())"
    )
    environment = clean_environment(PYTHONHASHSEED="7", TZ="Asia/Tokyo", LC_ALL="C")
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(report_pdf(report, of)).hexdigest()


def shaped(text: str) -> list[str]:
    """The glyphs of a line as they stand from left to right, by HarfBuzz itself."""
    font = hb.Font(hb.Face(hb.Blob.from_file_path(str(FONTS / "DejaVuSans-Bold.ttf"))))
    buffer = hb.Buffer()
    buffer.add_str(text)
    buffer.guess_segment_properties()
    hb.shape(font, buffer)
    return [font.glyph_to_string(one.codepoint) for one in buffer.glyph_infos]


def test_arabic_letters_are_joined_and_run_from_right_to_left(kept: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from fpdf.fonts import TTFFont

    seen: list[tuple[str, list[int], str]] = []
    original = TTFFont.shape_text

    def spy(self: TTFFont, text: str, font_size_pt: float, parms: Any) -> Any:
        glyphs = original(self, text, font_size_pt, parms)
        seen.append((text, [one["mapped_char"] for one in glyphs], self.fontkey))
        return glyphs

    monkeypatch.setattr(TTFFont, "shape_text", spy)
    name = "\u0645\u062d\u0645\u062f"  # Muhammad: four letters, joined into one word
    report_pdf(signed(kept, by=name), site(minimum_cells=100))
    [glyphs] = {tuple(mapped) for text, mapped, font in seen if text.strip() == name and font.endswith("B")}
    by_harfbuzz = shaped(name)
    assert len(glyphs) == len(by_harfbuzz) == 4
    assert len({by_harfbuzz[1], by_harfbuzz[3]}) == 2  # the same letter, at the beginning and in the middle, is two shapes
    assert by_harfbuzz[-1].startswith("uni0645") or "0645" in by_harfbuzz[-1] or by_harfbuzz[-1] == "uniFEE3"  # the first is last


def right_edge(page: FPDF) -> float:
    return page.w - page.r_margin + 0.1


@pytest.mark.parametrize("by", ["\u5f35\u5049" * 50, "W" * 100, "\u05d0" * 100, "\u0645" * 100, "x y " * 25])
def test_a_long_name_stays_on_the_page(kept: Store, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    edges: list[float] = []
    original = FPDF._render_styled_text_line

    def spy(page: FPDF, line: Any, *given: Any, **named: Any) -> Any:
        start = page.x
        edges.append(start + line.text_width - right_edge(page))
        return original(page, line, *given, **named)

    monkeypatch.setattr(FPDF, "_render_styled_text_line", spy)
    report_pdf(signed(kept, by=by), site(minimum_cells=100))
    assert len(edges) > 50
    assert max(edges) <= 0


def test_a_name_of_another_direction_stands_alone(kept: Store, written: list[str]) -> None:
    """In one line with a date it would take the date along."""
    name = "\u05d3\u05f4\u05e8 \u05e9\u05e8\u05d4 12"
    report_pdf(signed(kept, by=name), site(minimum_cells=100))
    assert written.count(name) == 2
    assert not any(name in text and text != name for text in written)


def test_what_turns_the_direction_or_is_blank_is_not_taken_for_a_name(kept: Store, written: list[str]) -> None:
    """A store may hold such names from before they were refused."""
    report = signed(kept)
    report.signed_by = "\u202egnorW\u3000x"
    report_pdf(report, site(minimum_cells=100))
    assert "[U+202E]gnorW x" in written
