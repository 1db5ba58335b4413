"""A report as one page to print or to file. The same report gives the same bytes.

The fonts (DejaVu Sans, serving/formats/fonts) hold the Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew and Arabic letters of
names. HarfBuzz joins them and sets them in their direction. Where the fonts lack a character
the page shows its code, such as [U+5F20]: a name must not come out as empty boxes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from serving.contract.differential import (
    DRAWS,
    NO_CELL,
    PERSON_ONLY,
    SITE_UNKNOWN,
    AbsoluteCount,
    ClassShare,
    Correction,
    Differential,
    Flag,
    Interval,
    ReferenceRange,
    plain,
)
from serving.contract.names import BLANKS, REFUSED
from serving.contract.report_schemas import ReportAnswer, ReportChange
from serving.contract.site import Site
from serving.contract.words import Words, words_of

FONTS: Final = Path(__file__).resolve().parent / "fonts"
FONT: Final = "DejaVu"
MARGIN: Final = 18.0  # mm, as all lengths here
WIDTH: Final = 210 - 2 * MARGIN
ROW: Final = 6.3
NAMES: Final = 40.0  # for the names of facts
WHEN: Final = 52.0  # for what was done and when
SMALLEST: Final = 5.5  # points; a value that does not fit in a line of these goes on in the next
Colour = tuple[int, int, int]
INK: Final[Colour] = (26, 32, 44)
FAINT: Final[Colour] = (102, 112, 133)
LINE: Final[Colour] = (208, 213, 221)
SHADE: Final[Colour] = (242, 244, 247)
BAND: Final[Colour] = (198, 222, 214)
ALERT: Final[Colour] = (176, 32, 37)
STATUS: Final[dict[str, Colour]] = {
    "preliminary": ALERT,
    "final": (22, 101, 70),
    "amended": (146, 64, 14),
    "withdrawn": ALERT,
}


UNCORRECTED: Final = {PERSON_ONLY: "person_only", NO_CELL: "no_cell", SITE_UNKNOWN: "site_unknown"}


class _Column(NamedTuple):
    title: str
    width: float
    align: str = "R"
    alert: bool = False


class _Page(FPDF):
    """A4 with our fonts, the words of a language, and a foot that says which version of which report it is."""

    def __init__(self, report: ReportAnswer, words: Words) -> None:
        super().__init__(format="A4")
        self.words = words
        self.foot = words("pdf.foot", id=report.id, version=report.version, status=words(f"pdf.state.{report.status}"))
        self.set_creation_date(report.changed_at)
        self.set_title(f"{words('pdf.title')} {report.id}")
        self.set_lang(words.language)
        self.set_margin(MARGIN)
        self.set_auto_page_break(True, 20)
        self.add_font(FONT, "", FONTS / "DejaVuSans.ttf")
        self.add_font(FONT, "B", FONTS / "DejaVuSans-Bold.ttf")
        self.set_text_shaping(True)
        self._known = {chr(code) for code in self.fonts[FONT.lower()].cmap}  # type: ignore[union-attr]
        self.add_page()

    def footer(self) -> None:
        """On every page."""
        self.set_y(-14)
        self.write_line(f"{self.foot}    {self.words('pdf.page', number=self.page_no())}", 7, FAINT)

    def shown(self, text: str) -> str:
        """Text that the fonts can show, and that is shown in the order in which it was written."""
        known = self._known
        return "".join(one if one in known and not REFUSED.match(one) else f"[U+{ord(one):04X}]" for one in BLANKS.sub(" ", text))

    def style(self, size: float, colour: Colour = INK, bold: bool = False) -> None:
        """Font and colour of what is written next; size in points."""
        self.set_font(FONT, "B" if bold else "", size)
        self.set_text_color(*colour)

    def write_line(self, text: str, size: float, colour: Colour = INK, bold: bool = False) -> None:
        """A paragraph."""
        self.style(size, colour, bold)
        self.multi_cell(0, size * 0.5, self.shown(text), align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def heading(self, text: str) -> None:
        """A heading with room above it; it does not stand alone at the foot of a page."""
        if self.will_page_break(22):
            self.add_page()
        self.ln(4)
        self.write_line(text, 10.5, bold=True)
        self.ln(1.5)


def report_pdf(report: ReportAnswer, site: Site) -> bytes:
    """The page as a PDF file, in the site's language."""
    page = _Page(report, words_of(site.language))
    words = page.words
    enough = report.differential.kind == "differential"
    _head(page, report, site, enough)
    _facts(page, report)
    page.heading(words("pdf.heading.percent" if enough else "pdf.heading.cells"))
    _percentages(page, report, enough)
    _beside(page, report)
    if enough:
        if report.differential.wbc_count is not None:
            page.heading(words("pdf.heading.absolute"))
            _absolute(page, report)
        page.heading(words("pdf.heading.chart"))
        _chart(page, report)
    _signatures(page, report)
    _remarks(page, report)
    return bytes(page.output())


def _head(page: _Page, report: ReportAnswer, site: Site, enough: bool) -> None:
    words = page.words
    name, colour = words(f"pdf.status.{report.status}"), STATUS[report.status]
    page.style(8.5, (255, 255, 255), bold=True)
    width = page.get_string_width(name) + 6
    page.set_fill_color(*colour)
    page.set_xy(MARGIN + WIDTH - width, MARGIN)
    page.cell(width, 7, name, align="C", fill=True)
    page.set_xy(MARGIN, MARGIN)
    page.write_line(words("pdf.title" if enough else "pdf.title_few"), 17, bold=True)
    page.write_line(site.identifiers.facility or words("pdf.site", name=site.name), 9, FAINT)
    if not enough:
        page.ln(2)
        page.write_line(f"{words('pdf.no_differential')} {_note(words, report)}", 10, ALERT, bold=True)
    for warning, applies in (("rendered", report.differential.rendered), ("site_unknown", report.differential.site_unknown)):
        if applies:
            page.ln(2)
            page.write_line(words(f"pdf.warning.{warning}"), 10, ALERT, bold=True)
    page.ln(3)


def _note(words: Words, report: ReportAnswer) -> str:
    """How many cells were counted, and whether they are enough."""
    of = report.differential
    noted = words("pdf.note", count=of.cells, to_review=of.to_review)
    few = of.kind == "too_few_cells"
    return f"{noted} {words('pdf.note_few', minimum=of.minimum_cells)}" if few else noted


def _facts(page: _Page, report: ReportAnswer) -> None:
    differential, words = report.differential, page.words
    missing = words("pdf.not_given")
    given = differential.wbc_count
    count = missing if given is None else words("pdf.per_microlitre", count=words.decimal(f"{given:g}"))
    images, cells = words("pdf.images", count=len(report.cells)), words("pdf.cells", count=differential.cells)
    facts = [
        (words("pdf.fact.cells"), words("pdf.of", some=differential.cells, all=images)),
        (words("pdf.fact.count"), count),
        (words("pdf.fact.reviewed"), words("pdf.of", some=differential.by_person, all=cells)),
        (words("pdf.fact.corrected"), words("pdf.cells", count=report.corrected)),
        (words("pdf.fact.to_review"), words("pdf.cells", count=differential.to_review)),
        (words("pdf.fact.analysed"), words.moment(report.created_at)),
        (words("pdf.fact.model"), f"{report.model.name} {report.model.version}"),
    ]
    _fact_row(page, [(words("pdf.fact.specimen"), report.specimen_id or missing)])
    for number in range(0, len(facts), 2):
        _fact_row(page, facts[number : number + 2], 2)
    nobody = words("pdf.nobody_withdrawn" if report.withdrawn else "pdf.nobody")
    _fact_row(page, [(words("pdf.fact.signed_by"), report.signed_by or nobody)])


def _fact_row(page: _Page, facts: Sequence[tuple[str, str]], columns: int = 1, names: float = NAMES) -> None:
    """Facts side by side; the next row begins below the highest."""
    top, width = page.get_y(), WIDTH / columns
    bottoms = []
    for number, (name, value) in enumerate(facts):
        page.set_xy(MARGIN + number * width, top)
        bottoms.append(_fact(page, name, value, width, names))
    page.set_xy(MARGIN, max(bottoms))


def _fact(page: _Page, name: str, value: str, width: float, names: float) -> float:
    """A name and its value, whole: set smaller where it would not fit, then in lines. Returns where it ends."""
    page.style(8, FAINT)
    page.cell(names, 6, name)
    text, size, room = page.shown(value), 8.5, width - names - 2
    page.style(size, bold=True)
    while page.get_string_width(text) > room and size > SMALLEST:
        size -= 0.25
        page.style(size, bold=True)
    if page.get_string_width(text) <= room:
        page.cell(width - names, 6, text)
        return page.get_y() + 6
    page.set_xy(page.get_x(), page.get_y() + 1.2)
    page.multi_cell(room + 2, 3.6, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    return page.get_y() + 1.2


def _table(page: _Page, columns: Sequence[_Column], rows: Sequence[Sequence[str]]) -> None:
    page.set_fill_color(*SHADE)
    page.set_draw_color(*LINE)
    page.style(7.5, FAINT, bold=True)
    for column in columns:
        page.cell(column.width, ROW, column.title, align=column.align, fill=True)
    page.ln(ROW)
    for row in rows:
        for column, text in zip(columns, row, strict=True):
            flagged = column.alert
            page.style(8.5, ALERT if flagged else INK, bold=flagged or column is columns[0])
            page.cell(column.width, ROW, text, align=column.align, border="B")
        page.ln(ROW)


def _between(words: Words, limits: Interval | None, digits: int) -> str:
    return "" if limits is None else words.decimal(f"{limits.low:.{digits}f} – {limits.high:.{digits}f}")


def _reference(words: Words, limits: ReferenceRange) -> str:
    return words.decimal(f"{plain(limits.low)} – {plain(limits.high)}")


def _flag(words: Words, flag: Flag | None) -> str:
    return "" if flag is None else words(f"pdf.flag.{flag}")


def _percentages(page: _Page, report: ReportAnswer, enough: bool) -> None:
    classes, words = report.differential.classes.items(), page.words
    if not enough:
        columns = [_Column(words("pdf.column.class"), 40, "L"), _Column(words("pdf.column.cells"), 20)]
        _table(page, columns, [[words.kind(name), str(share.count)] for name, share in classes])
        return
    columns = [
        _Column(words("pdf.column.class"), 30, "L"),
        _Column(words("pdf.column.cells"), 14),
        _Column("%", 16),
        *_limit_columns(words),
    ]
    rows = [
        [
            words.kind(name),
            str(share.count),
            words.decimal(share.printed),
            _between(words, share.interval, 1),
            _between(words, share.corrected, 1),
            _reference(words, share.reference),
            _flag(words, share.flag),
        ]
        for name, share in classes
    ]
    _table(page, columns, rows)


def _limit_columns(words: Words) -> list[_Column]:
    return [
        _Column(words("pdf.column.limits"), 31),
        _Column(words("pdf.column.corrected"), 31),
        _Column(words("pdf.column.reference"), 25),
        _Column(words("pdf.column.flag"), 27, alert=True),
    ]


def _beside(page: _Page, report: ReportAnswer) -> None:
    """What was counted beside the differential; nothing where nothing was."""
    words, further = page.words, report.differential.further
    if not further:
        return
    page.heading(words("pdf.heading.beside", leukocytes=report.differential.leukocytes))
    columns = [
        _Column(words("pdf.column.kind"), 60, "L"),
        _Column(words("pdf.column.cells"), 20),
        _Column(words("pdf.column.per_100"), 40),
    ]
    rows = [[words.kind(name), str(of.count), words.decimal(of.printed)] for name, of in further.items()]
    _table(page, columns, rows)


def _absolute(page: _Page, report: ReportAnswer) -> None:
    words = page.words
    columns = [_Column(words("pdf.column.class"), 44, "L"), _Column(words("pdf.column.count"), 16), *_limit_columns(words)]
    counts = [(name, share.absolute) for name, share in report.differential.classes.items() if share.absolute is not None]
    _table(page, columns, [[words.kind(name), *_absolute_row(words, count)] for name, count in counts])


def _absolute_row(words: Words, count: AbsoluteCount) -> Iterator[str]:
    yield words.decimal(count.printed)
    yield _between(words, count.interval, 2)
    yield _between(words, count.corrected, 2)
    yield _reference(words, count.reference)
    yield _flag(words, count.flag)


def _chart(page: _Page, report: ReportAnswer) -> None:
    """For each class the reference range as a band, the exact limits as a line and the percentage as a dot."""
    left, width = MARGIN + 30, WIDTH - 34
    top = page.get_y()
    for number, (name, share) in enumerate(report.differential.classes.items()):
        _chart_row(page, page.words.kind(name), share, left, width, top + 6 * number)
    bottom = top + 6 * len(report.differential.classes)
    page.style(6.5, FAINT)
    for tick in range(0, 101, 20):
        x = left + width * tick / 100
        page.set_draw_color(*LINE)
        page.line(x, bottom, x, bottom + 1)
        page.set_xy(x - 8, bottom + 1)
        page.cell(16, 3.5, f"{tick} %", align="C")
    page.set_xy(MARGIN, bottom + 5)
    page.write_line(page.words("pdf.chart"), 6.5, FAINT)


def _chart_row(page: _Page, name: str, share: ClassShare, left: float, width: float, top: float) -> None:
    def x(percent: float) -> float:
        return left + width * percent / 100

    middle, colour = top + 3, INK if share.flag in (None, "normal") else ALERT
    page.set_xy(MARGIN, top)
    page.style(8)
    page.cell(30, 6, name)
    page.set_fill_color(*SHADE)
    page.rect(left, top + 1, width, 4, style="F")
    page.set_fill_color(*BAND)
    page.rect(x(share.reference.low), top + 1, max(0.4, x(share.reference.high) - x(share.reference.low)), 4, style="F")
    page.set_draw_color(*colour)
    page.set_line_width(0.4)
    page.line(x(share.interval.low), middle, x(share.interval.high), middle)
    page.set_line_width(0.2)
    page.set_fill_color(*colour)
    page.circle(x(share.percent), middle, 1.1, style="F")


def _remarks(page: _Page, report: ReportAnswer) -> None:
    differential, words = report.differential, page.words
    page.heading(words("pdf.heading.remarks"))
    limits = (
        _note(words, report),
        words("pdf.remark.limits", corrected=_correction(words, differential.correction)),
        words("pdf.remark.ranges", reference=differential.reference_source, critical=differential.critical_source),
    )
    purpose = words("pdf.remark.purpose", reviewed=_reviewed(words, differential))
    for remark in (*(limits if differential.kind == "differential" else ()), purpose):
        page.write_line(remark, 7.5, FAINT)
        page.ln(0.8)


def _correction(words: Words, of: Correction) -> str:
    """How the limits were corrected, or why not; what is rare is said in the service's words."""
    if of.applied:
        return words("pdf.correction.applied", cells=of.validation_cells, draws=DRAWS)
    return words(f"pdf.correction.{UNCORRECTED[of.explanation]}") if of.explanation in UNCORRECTED else of.explanation


def _reviewed(words: Words, of: Differential) -> str:
    """To how many of the cells a person gave or confirmed the class."""
    which = "all" if of.by_person == of.cells else "some"
    did = words(f"pdf.reviewed.{which if of.by_person else 'none'}", some=of.by_person, cells=of.cells)
    return words("pdf.reviewed.left", did=did, left=of.to_review) if of.to_review else did


def _signatures(page: _Page, report: ReportAnswer) -> None:
    words = page.words
    page.heading(words("pdf.heading.signatures"))
    if not report.signatures:
        page.write_line(words("pdf.unsigned"), 8.5, ALERT, bold=True)
    for signature in report.signatures:
        # The name stands alone: beside a date, one that runs from right to left would take the date with it.
        done = words(f"pdf.signature.{signature.status}")
        _fact_row(page, [(f"{done}, {words.moment(signature.at)}", signature.by)], names=WHEN)
    for change in report.changes:
        _fact_row(page, [(f"{_what(words, change)}, {words.moment(change.at)}", change.by)], names=WHEN)
        values = "" if change.what == "withdrawal" else _values(words, change)
        _fact_row(page, [("", f"{values}{change.reason}")], names=WHEN)
    if report.signatures and report.signed_by is None and not report.withdrawn:
        page.write_line(words("pdf.changed_since"), 8.5, ALERT, bold=True)


def _what(words: Words, change: ReportChange) -> str:
    if change.what == "withdrawal":
        return words("pdf.change.withdrawn" if change.to_value == "withdrawn" else "pdf.change.reinstated")
    return words(f"pdf.change.{change.what}")


def _values(words: Words, change: ReportChange) -> str:
    values = {"before": change.from_value, "after": change.to_value}
    return words("pdf.change.values", **{name: _value(words, one) for name, one in values.items()}) + " "


def _value(words: Words, value: object) -> str:
    if value is None:
        return words("pdf.not_given")
    return words.decimal(str(value)) if isinstance(value, float) else str(value)
