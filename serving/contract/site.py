"""What a laboratory sets for itself: reference ranges, critical limits, codes, and where its messages go.

The defaults are `serving/sites/default.yaml`; a file named by WBC_SITE_FILE replaces whole blocks of it.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serving.contract.labelling import NOT_A_LEUKOCYTE, RESERVED_KEYS, UNSURE
from serving.contract.names import LINE, visible
from serving.contract.specimen import HIGHEST_COUNT, MOST_IMAGES
from serving.contract.words import Language
from wbc_model.core.classes import CLASSES
from wbc_model.core.errors import WbcError
from wbc_model.core.written import read_yaml

SITE_FILE: Final = "WBC_SITE_FILE"
STORE_URL: Final = "WBC_STORE_URL"  # the database in which a site keeps its reports
DEFAULT: Final = Path(__file__).resolve().parent.parent / "sites" / "default.yaml"
Kind = Literal["percent", "absolute"]
KINDS: Final[tuple[Kind, ...]] = ("percent", "absolute")
COUNTED_BY: Final[Any] = {
    **dict.fromkeys(("name", "minimum_cells", "review_before_signature", "reference", "critical"), True),
    "labelling": {"further_kinds"},
}
# The way in which a differential is counted; with each change of it one more, so that what nobody has signed is counted again.
COUNTING: Final = 2
HIGHEST_REFERENCE: Final = 100.0  # 10*3/uL: no laboratory's range reaches it; one in cells/uL would
# What LOINC has for the five classes in blood: without a method, by an automated and by a manual count.
LOINC_TERMS: Final[dict[Kind, dict[str, tuple[str, ...]]]] = {
    "percent": {
        "Basophil": ("30180-4", "706-2", "707-0"),
        "Eosinophil": ("26450-7", "713-8", "714-6"),
        "Lymphocyte": ("26478-8", "736-9", "737-7"),
        "Monocyte": ("26485-3", "5905-5", "744-3"),
        "Neutrophil": ("26511-6", "770-8", "23761-0"),
    },
    "absolute": {
        "Basophil": ("26444-0", "704-7", "705-4"),
        "Eosinophil": ("26449-9", "711-2", "712-0"),
        "Lymphocyte": ("26474-7", "731-0", "732-8"),
        "Monocyte": ("26484-6", "742-7", "743-5"),
        "Neutrophil": ("26499-4", "751-8", "753-4"),
    },
}


def _seen_or_empty(text: str) -> str:
    if text and not visible(text):
        raise ValueError("there is nothing to see in it; write something, or leave it empty")
    return text.strip()


Line = Annotated[str, Field(max_length=200, pattern=LINE), AfterValidator(_seen_or_empty)]
Uri = Annotated[str, Field(max_length=200, pattern=r"^[!-~]*$")]  # as FHIR's `uri`: no blank in it
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    """A part of the file: no unknown key, no silent conversion of a mistyped value."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Range(_Section):
    """The reference range of a class: from `low` to `high`, both included."""

    low: Amount
    high: Amount

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class Critical(_Section):
    """Critical limits of a class: a value below `low` or above `high` is critical; either may be missing."""

    low: Amount | None = None
    high: Amount | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("has neither low nor high: give one, or leave the class out")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}: every value would be critical")
        return self


class Reference(_Section):
    """Reference ranges of every class, in percent and in 10*3/uL, and where they were published."""

    source: Line
    percent: dict[str, Range]
    absolute: dict[str, Range]


class CriticalLimits(_Section):
    """Critical limits of those classes that have any, in percent and in 10*3/uL."""

    source: Line
    percent: dict[str, Critical]
    absolute: dict[str, Critical]


class LoincCodes(_Section):
    """LOINC terms of the panel and of every class."""

    panel: str
    percent: dict[str, str]
    absolute: dict[str, str]

    @field_validator("panel")
    @classmethod
    def _known_panel(cls, code: str) -> str:
        return _checked_loinc(code)

    @field_validator("percent", "absolute")
    @classmethod
    def _known(cls, codes: dict[str, str]) -> dict[str, str]:
        return {name: _checked_loinc(code) for name, code in codes.items()}

    @model_validator(mode="after")
    def _where_they_belong(self) -> Self:
        places = {"panel": self.panel}
        places |= {f"{kind}.{name}": code for kind in KINDS for name, code in getattr(self, kind).items()}
        first: dict[str, str] = {}
        for place, code in places.items():
            if code in first:
                raise ValueError(f"{code} stands twice, at {first[code]} and at {place}: each term has a code of its own")
            first[code] = place
        for place, code in places.items():
            belongs = _KNOWN_TERMS.get(code, place)
            if belongs != place:
                raise ValueError(f"{place}: {code} is LOINC's term for {belongs}")
        return self


class Identifiers(_Section):
    """How FHIR and HL7 messages name the sender and the receiver; empty where they do not."""

    facility: Line
    application: Line
    receiving_facility: Line
    receiving_application: Line
    specimen_system: Uri


class Hl7Receiver(_Section):
    """Where HL7 v2 messages go over MLLP. `timeout_seconds` is for the connection and for the acknowledgement."""

    host: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^\S+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    timeout_seconds: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)] = 10.0
    retries: Annotated[int, Field(ge=0)] = 10


class KeepImages(_Section):
    """That images are kept: for how many days after their report was made (null: as long as the report), and whether they are
    encrypted with the key of WBC_IMAGE_KEY_FILE."""

    days: Annotated[int, Field(ge=1, le=36_500)] | None = 90
    encrypted: bool = False


class FurtherKind(_Section):
    """What a person may call a cell beside the five classes, by which key, and LOINC's term for it where there is one.

    Reports count a `leukocyte` among the cells that all shares are of.
    """

    name: Annotated[Line, Field(min_length=1, max_length=40)]
    key: Annotated[str, Field(min_length=1, max_length=1)]
    loinc: str | None = None
    leukocyte: bool = False

    @field_validator("name")
    @classmethod
    def _no_other_answer(cls, name: str) -> str:
        if name.casefold() in {known.casefold() for known in (*CLASSES, NOT_A_LEUKOCYTE, UNSURE)}:
            raise ValueError(f"{name!r} is an answer already")
        return name

    @field_validator("key")
    @classmethod
    def _free_key(cls, key: str) -> str:
        if key in RESERVED_KEYS:
            raise ValueError(f"the page uses the key {key!r} itself; choose another")
        if not visible(key) or key != key.lower():
            raise ValueError(f"{key!r} is no key: give one small letter")
        return key

    @field_validator("loinc")
    @classmethod
    def _known_term(cls, code: str | None) -> str | None:
        return None if code is None else _checked_loinc(code)


class Labelling(_Section):
    """How readers name the cells that the model asks about.

    The shares are of the cells (`second_reader_share`), and of each reader's tasks (the other two). `pixel_um` are micrometres
    for each pixel of the images.
    """

    further_kinds: list[FurtherKind]
    second_reader_share: Annotated[float, Field(ge=0, le=1)] = 0.2
    repeat_share: Annotated[float, Field(ge=0, le=0.4)] = 0.05
    known_share: Annotated[float, Field(ge=0, le=0.4)] = 0.05
    pixel_um: Annotated[float, Field(gt=0, le=10)] | None = None
    corrections_to_pools: bool = False

    @model_validator(mode="after")
    def _told_apart(self) -> Self:
        kinds = self.further_kinds
        for what, given in (
            ("name", [kind.name.casefold() for kind in kinds]),
            ("key", [kind.key for kind in kinds]),
            ("loinc", [kind.loinc for kind in kinds if kind.loinc is not None]),
        ):
            twice = next((one for one in given if given.count(one) > 1), None)
            if twice is not None:
                raise ValueError(f"further_kinds: the {what} {twice!r} stands twice")
        return self


class Watching(_Section):
    """What is kept of served cells to see whether they change: the `days` that their measures are kept, and the `share` of the
    cells of reports that is drawn for readers, who name them blind."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    days: Annotated[int, Field(ge=14, le=3650)] = 90


class Site(_Section):
    """All settings of a site."""

    name: Annotated[Line, Field(min_length=1)]
    language: Language
    minimum_cells: Annotated[int, Field(ge=1, le=MOST_IMAGES)]
    review_before_signature: Literal["marked", "all", "nothing"]
    reference: Reference
    critical: CriticalLimits
    loinc: LoincCodes
    identifiers: Identifiers
    keep_images: KeepImages | None
    hl7: Hl7Receiver | None
    labelling: Labelling
    watching: Watching

    @field_validator("keep_images", mode="before")
    @classmethod
    def _yes_or_no(cls, given: Any) -> Any:
        """`true` is the defaults, `false` keeps none."""
        return {True: {}, False: None}[given] if isinstance(given, bool) else given

    def further_kind(self, name: str) -> FurtherKind | None:
        """The site's further kind of this name; None where it has none, or none any more."""
        return next((kind for kind in self.labelling.further_kinds if kind.name == name), None)

    def is_leukocyte(self, name: str) -> bool:
        """Whether a cell of this name is counted among the leukocytes: a class, or such a further kind."""
        kind = self.further_kind(name)
        return name in CLASSES or (kind is not None and kind.leukocyte)

    def digest(self) -> str:
        """Of the settings that a differential, and what is left to review of it, depend on, and of the way in which it is
        counted."""
        return hashlib.sha256(f"{COUNTING}{self.model_dump_json(include=COUNTED_BY)}".encode()).hexdigest()

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        for block in ("reference", "loinc", "critical"):
            for kind in ("percent", "absolute"):
                names = set(getattr(getattr(self, block), kind))
                if unknown := names - set(CLASSES):
                    raise ValueError(f"{block}.{kind}: {sorted(unknown)[0]!r} is no class; the classes are {', '.join(CLASSES)}")
                if block != "critical" and (missing := set(CLASSES) - names):
                    raise ValueError(f"{block}.{kind}: {sorted(missing)[0]} is missing")
        for problem in (*_ranges(self.reference), *_critical_limits(self), *_codes_of_further_kinds(self)):
            raise ValueError(problem)
        return self


def _ranges(reference: Reference) -> Iterator[str]:
    """What is wrong with the reference ranges beside their order."""
    for name, limits in reference.percent.items():
        if limits.high > 100:
            yield f"reference.percent: {name}: high {limits.high:g} is above 100"
    lowest = sum(limits.low for limits in reference.percent.values())
    highest = sum(limits.high for limits in reference.percent.values())
    if lowest > 100 or highest < 100:
        yield f"reference.percent: no five shares in these ranges make 100 %: they make {lowest:g} to {highest:g}"
    for name, limits in reference.absolute.items():
        if limits.high > HIGHEST_REFERENCE:
            yield (
                f"reference.absolute: {name}: high {limits.high:g} is above {HIGHEST_REFERENCE:g}: ranges are in 10*3/uL, "
                f"which is the same number as 10^9/L"
            )


def _critical_limits(site: Site) -> Iterator[str]:
    """Critical limits within the reference range, which would make a normal value critical, and those that nothing reaches."""
    for kind in KINDS:
        highest = 100.0 if kind == "percent" else HIGHEST_COUNT
        for name, critical in getattr(site.critical, kind).items():
            place, normal = f"critical.{kind}: {name}", getattr(site.reference, kind)[name]
            if critical.low is not None and critical.low > normal.low:
                yield f"{place}: low {critical.low:g} is above the lower end of the reference range, {normal.low:g}"
            if critical.high is not None and critical.high < normal.high:
                yield f"{place}: high {critical.high:g} is below the upper end of the reference range, {normal.high:g}"
            if critical.high is not None and critical.high > highest:
                yield f"{place}: high {critical.high:g} is above {highest:g}, which no value reaches"


def _codes_of_further_kinds(site: Site) -> Iterator[str]:
    """Codes of further kinds that are those of the panel or of a class."""
    taken = {site.loinc.panel: "the panel"}
    taken |= {code: name for kind in KINDS for name, code in getattr(site.loinc, kind).items()}
    taken |= {code: place.partition(".")[2] for code, place in _KNOWN_TERMS.items()}
    for kind in site.labelling.further_kinds:
        if kind.loinc in taken:
            yield f"labelling.further_kinds: {kind.name}: {kind.loinc} is the term of {taken[kind.loinc]}"


def _checked_loinc(code: str) -> str:
    """A LOINC code ends in a Luhn (mod 10) check digit, which catches a mistyped one."""
    if not re.fullmatch("[1-9][0-9]{0,6}-[0-9]", code, re.ASCII):
        raise ValueError(f"{code!r} is no LOINC code such as 26511-6")
    digits, _, check = code.partition("-")
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    if (sum(value // 10 + value % 10 for value in doubled) + int(check)) % 10:
        raise ValueError(f"{code!r} is no LOINC code: its check digit does not fit")
    return code


_KNOWN_TERMS: Final = {
    code: f"{kind}.{name}" for kind, terms in LOINC_TERMS.items() for name, codes in terms.items() for code in codes
}


def read_site(path: Path | None = None) -> Site:
    """The settings of a file, with the defaults for the blocks it leaves out; without a file the defaults.

    Raises WbcError naming the file, the field and what is wrong with it.
    """
    given: dict[Any, Any] = read_yaml(path) if path else {}
    for key in given:
        if key not in Site.model_fields:
            raise WbcError(f"{path}: {key}: is no setting; there are {', '.join(Site.model_fields)}")
    try:
        return Site.model_validate({**read_yaml(DEFAULT), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise WbcError(f"{path or DEFAULT}: {f'{where}: {what}' if where else what}") from None


def site_from_environment(environment: Mapping[str, str] = os.environ) -> Site:
    """The settings of the file that WBC_SITE_FILE names, else the defaults; raises WbcError as `read_site`."""
    named = environment.get(SITE_FILE, "").strip()
    return read_site(Path(named) if named else None)
