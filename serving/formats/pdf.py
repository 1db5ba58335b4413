"""A report as one page to print or to file. The same report gives the same bytes.

The fonts (DejaVu Sans, serving/formats/fonts) hold the Latin, Greek, Cyrillic, Armenian, Georgian, Hebrew and Arabic letters of
names. HarfBuzz joins them and sets them in their direction. Where the fonts lack a character
the page shows its code, such as [U+5F20]: a name must not come out as empty boxes.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from fpdf import FPDF
from fpdf.enums import XPos, YPos

from serving.contract.differential import (
    RENDERED,
    SITE_UNKNOWN,
    AbsoluteCount,
    ClassShare,
    Flag,
    Interval,
    ReferenceRange,
    how_reviewed,
    plain,
)
from serving.contract.names import BLANKS, REFUSED
from serving.contract.report_schemas import ReportAnswer, ReportChange
from serving.contract.site import Site

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
STATUS: Final[dict[str, tuple[str, Colour]]] = {
    "preliminary": ("PRELIMINARY, NOT SIGNED", ALERT),
    "final": ("FINAL", (22, 101, 70)),
    "amended": ("AMENDED", (146, 64, 14)),
    "withdrawn": ("WITHDRAWN, NOT VALID", ALERT),
}
FLAGS: Final[dict[Flag | None, str]] = {
    None: "",
    "normal": "",
    "low": "L  low",
    "high": "H  high",
    "critical_low": "LL  critical",
    "critical_high": "HH  critical",
}


class _Column(NamedTuple):
    title: str
    width: float
    align: str = "R"


class _Page(FPDF):
    """A4 with our fonts, and a foot that says which version of which report it is."""

    def __init__(self, report: ReportAnswer) -> None:
        super().__init__(format="A4")
        self.foot = f"Report {report.id}, version {report.version}, {report.status}"
        self.set_creation_date(report.changed_at)
        self.set_title(f"Leukocyte differential {report.id}")
        self.set_lang("en")
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
        self.write_line(f"{self.foot}    page {self.page_no()}", 7, FAINT)

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
        """A heading with room above it."""
        self.ln(4)
        self.write_line(text, 10.5, bold=True)
        self.ln(1.5)


def report_pdf(report: ReportAnswer, site: Site) -> bytes:
    """The page as a PDF file."""
    page = _Page(report)
    enough = report.differential.kind == "differential"
    _head(page, report, site, enough)
    _facts(page, report)
    page.heading("Percent of the leukocytes counted" if enough else "Cells counted")
    _percentages(page, report, enough)
    if enough:
        if report.differential.wbc_count is not None:
            page.heading("Absolute counts in 10³/µL (10⁹/L)")
            _absolute(page, report)
        page.heading("Against the reference ranges")
        _chart(page, report)
    _signatures(page, report)
    _remarks(page, report)
    return bytes(page.output())


def _head(page: _Page, report: ReportAnswer, site: Site, enough: bool) -> None:
    name, colour = STATUS[report.status]
    page.style(8.5, (255, 255, 255), bold=True)
    width = page.get_string_width(name) + 6
    page.set_fill_color(*colour)
    page.set_xy(MARGIN + WIDTH - width, MARGIN)
    page.cell(width, 7, name, align="C", fill=True)
    page.set_xy(MARGIN, MARGIN)
    page.write_line("Leukocyte differential" if enough else "Classified leukocytes", 17, bold=True)
    page.write_line(site.identifiers.facility or f"Site: {site.name}", 9, FAINT)
    if not enough:
        page.ln(2)
        page.write_line(f"This is not a differential. {report.differential.note}", 10, ALERT, bold=True)
    for warning, applies in ((RENDERED, report.differential.rendered), (SITE_UNKNOWN, report.differential.site_unknown)):
        if applies:
            page.ln(2)
            page.write_line(warning, 10, ALERT, bold=True)
    page.ln(3)


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _facts(page: _Page, report: ReportAnswer) -> None:
    differential = report.differential
    count = "not given" if differential.wbc_count is None else f"{differential.wbc_count:g} × 10³/µL"
    facts = [
        ("Cells counted", f"{differential.cells} of {_plural(len(report.cells), 'image')}"),
        ("Leukocyte count", count),
        ("Reviewed by a person", f"{differential.by_person} of {_plural(differential.cells, 'cell')}"),
        ("Corrected by a person", _plural(report.corrected, "cell")),
        ("Still to be reviewed", _plural(differential.to_review, "cell")),
        ("Analysed", _time(report.created_at)),
        ("Model", f"{report.model.name} {report.model.version}"),
    ]
    _fact_row(page, [("Specimen", report.specimen_id or "not given")])
    for number in range(0, len(facts), 2):
        _fact_row(page, facts[number : number + 2], 2)
    _fact_row(page, [("Signed by", report.signed_by or ("nobody: withdrawn" if report.withdrawn else "nobody yet"))])


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


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _table(page: _Page, columns: Sequence[_Column], rows: Sequence[Sequence[str]]) -> None:
    page.set_fill_color(*SHADE)
    page.set_draw_color(*LINE)
    page.style(7.5, FAINT, bold=True)
    for column in columns:
        page.cell(column.width, ROW, column.title, align=column.align, fill=True)
    page.ln(ROW)
    for row in rows:
        for column, text in zip(columns, row, strict=True):
            flagged = column.title == "Flag"
            page.style(8.5, ALERT if flagged else INK, bold=flagged or column is columns[0])
            page.cell(column.width, ROW, text, align=column.align, border="B")
        page.ln(ROW)


def _between(limits: Interval | None, digits: int) -> str:
    return "" if limits is None else f"{limits.low:.{digits}f} – {limits.high:.{digits}f}"


def _reference(limits: ReferenceRange) -> str:
    return f"{plain(limits.low)} – {plain(limits.high)}"


def _percentages(page: _Page, report: ReportAnswer, enough: bool) -> None:
    classes = report.differential.classes.items()
    if not enough:
        _table(page, [_Column("Class", 40, "L"), _Column("Cells", 20)], [[name, str(share.count)] for name, share in classes])
        return
    columns = [
        _Column("Class", 30, "L"),
        _Column("Cells", 14),
        _Column("%", 16),
        _Column("95 % limits", 31),
        _Column("Corrected limits", 31),
        _Column("Reference", 25),
        _Column("Flag", 27),
    ]
    rows = [
        [
            name,
            str(share.count),
            share.printed,
            _between(share.interval, 1),
            _between(share.corrected, 1),
            _reference(share.reference),
            FLAGS[share.flag],
        ]
        for name, share in classes
    ]
    _table(page, columns, rows)


def _absolute(page: _Page, report: ReportAnswer) -> None:
    columns = [
        _Column("Class", 44, "L"),
        _Column("Count", 16),
        _Column("95 % limits", 31),
        _Column("Corrected limits", 31),
        _Column("Reference", 25),
        _Column("Flag", 27),
    ]
    counts = [(name, share.absolute) for name, share in report.differential.classes.items() if share.absolute is not None]
    _table(page, columns, [[name, *_absolute_row(count)] for name, count in counts])


def _absolute_row(count: AbsoluteCount) -> Iterator[str]:
    yield count.printed
    yield _between(count.interval, 2)
    yield _between(count.corrected, 2)
    yield _reference(count.reference)
    yield FLAGS[count.flag]


def _chart(page: _Page, report: ReportAnswer) -> None:
    """For each class the reference range as a band, the exact limits as a line and the percentage as a dot."""
    left, width = MARGIN + 30, WIDTH - 34
    top = page.get_y()
    for number, (name, share) in enumerate(report.differential.classes.items()):
        _chart_row(page, name, share, left, width, top + 6 * number)
    bottom = top + 6 * len(report.differential.classes)
    page.style(6.5, FAINT)
    for tick in range(0, 101, 20):
        x = left + width * tick / 100
        page.set_draw_color(*LINE)
        page.line(x, bottom, x, bottom + 1)
        page.set_xy(x - 8, bottom + 1)
        page.cell(16, 3.5, f"{tick} %", align="C")
    page.set_xy(MARGIN, bottom + 5)
    page.write_line("Band: reference range. Line: exact 95 % limits. Dot: percentage; red where it is flagged.", 6.5, FAINT)


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
    differential = report.differential
    page.heading("Remarks")
    limits = (
        differential.note,
        "95 % limits: exact (Clopper-Pearson). Corrected limits: " + differential.correction.explanation,
        f"Reference ranges: {differential.reference_source}. Critical limits: {differential.critical_source}.",
    )
    purpose = f"The cells were pre-classified from their images by a neural network, {how_reviewed(differential)}."
    for remark in (*(limits if differential.kind == "differential" else ()), purpose):
        page.write_line(remark, 7.5, FAINT)
        page.ln(0.8)


def _signatures(page: _Page, report: ReportAnswer) -> None:
    page.heading("Signatures")
    if not report.signatures:
        page.write_line("Nobody has signed this report.", 8.5, ALERT, bold=True)
    for signature in report.signatures:
        # The name stands alone: beside a date, one that runs from right to left would take the date with it.
        _fact_row(page, [(f"{signature.status.capitalize()}, {_time(signature.at)}", signature.by)], names=WHEN)
    for change in report.changes:
        _fact_row(page, [(f"{_what(change)}, {_time(change.at)}", change.by)], names=WHEN)
        values = "" if change.what == "withdrawal" else f"From {_value(change.from_value)} to {_value(change.to_value)}. "
        _fact_row(page, [("", f"{values}{change.reason}")], names=WHEN)
    if report.signatures and report.signed_by is None and not report.withdrawn:
        page.write_line("Changed since it was signed: not valid until it is signed again.", 8.5, ALERT, bold=True)


def _what(change: ReportChange) -> str:
    if change.what == "withdrawal":
        return "Withdrawn" if change.to_value == "withdrawn" else "Withdrawal taken back"
    return f"{change.what.replace('_', ' ').capitalize()} changed"


def _value(value: object) -> str:
    return "not given" if value is None else str(value)
