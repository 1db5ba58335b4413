"""What a laboratory sets for itself: reference ranges, critical limits, codes, and where its messages go.

The defaults are `serving/sites/default.yaml`; a file named by WBC_SITE_FILE replaces whole blocks of it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from wbc_model.classes import CLASSES
from wbc_model.errors import WbcError

SITE_FILE: Final = "WBC_SITE_FILE"
DEFAULT: Final = Path(__file__).resolve().parent / "sites" / "default.yaml"
Line = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
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


class Identifiers(_Section):
    """How FHIR and HL7 messages name the sender and the receiver; empty where they do not."""

    facility: Line
    application: Line
    receiving_facility: Line
    receiving_application: Line
    specimen_system: Line


class Hl7Receiver(_Section):
    """Where HL7 v2 messages go over MLLP. `timeout_seconds` is for the connection and for the acknowledgement."""

    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]
    timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 10.0
    retries: Annotated[int, Field(ge=0)] = 10


class Site(_Section):
    """All settings of a site."""

    name: Annotated[Line, Field(min_length=1)]
    minimum_cells: Annotated[int, Field(ge=1)]
    review_before_signature: Literal["marked", "all", "nothing"]
    reference: Reference
    critical: CriticalLimits
    loinc: LoincCodes
    identifiers: Identifiers
    keep_images: bool
    hl7: Hl7Receiver | None

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        for block in ("reference", "loinc", "critical"):
            for kind in ("percent", "absolute"):
                names = set(getattr(getattr(self, block), kind))
                if unknown := names - set(CLASSES):
                    raise ValueError(f"{block}.{kind}: {sorted(unknown)[0]!r} is no class; the classes are {', '.join(CLASSES)}")
                if block != "critical" and (missing := set(CLASSES) - names):
                    raise ValueError(f"{block}.{kind}: {sorted(missing)[0]} is missing")
        for name, limits in self.reference.percent.items():
            if limits.high > 100:
                raise ValueError(f"reference.percent: {name}: high {limits.high:g} is above 100")
        return self


def _checked_loinc(code: str) -> str:
    """A LOINC code ends in a Luhn (mod 10) check digit, which catches a mistyped one."""
    digits, hyphen, check = code.partition("-")
    if not (code.isascii() and hyphen and digits.isdecimal() and len(digits) <= 7 and check.isdecimal() and len(check) == 1):
        raise ValueError(f"{code!r} is no LOINC code such as 26511-6")
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    if (sum(value // 10 + value % 10 for value in doubled) + int(check)) % 10:
        raise ValueError(f"{code!r} is no LOINC code: its check digit does not fit")
    return code


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise WbcError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WbcError(f"{path}: is no YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise WbcError(f"{path}: must be a YAML mapping, such as `name: my-laboratory`")
    return document


def read_site(path: Path | None = None) -> Site:
    """The settings of a file, with the defaults for the blocks it leaves out; without a file the defaults.

    Raises WbcError naming the file, the field and what is wrong with it.
    """
    given = _read(path) if path else {}
    try:
        return Site.model_validate({**_read(DEFAULT), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise WbcError(f"{path or DEFAULT}: {f'{where}: {what}' if where else what}") from None


def site_from_environment(environment: Mapping[str, str] = os.environ) -> Site:
    """The settings of the file that WBC_SITE_FILE names, else the defaults; raises WbcError as `read_site`."""
    named = environment.get(SITE_FILE, "").strip()
    return read_site(Path(named) if named else None)
