"""The JSON of `GET /v1/watch`: whether served cells are still as usual, and how right the model is in use."""

from typing import Literal

from pydantic import BaseModel, Field

Measure = Literal["class", "doubt", "stain", "sharpness", "embedding"]
State = Literal["usual", "alarm", "differs", "few", "unknown"]


class MeasureState(BaseModel):
    """The newest state of one measure of a site's cells."""

    measure: str
    state: State = Field(
        description="`differs`: from training, on the first day; `few`: too few cells yet; `unknown`: the model lacks it."
    )
    day: str = Field(description="The day of UTC that was judged last, as 2026-11-29.")
    since: str | None = Field(description="Since which day the alarm stands.")
    differed: str | None = Field(description="The day on which it was found to differ from training.")
    cells: int
    effective: float | None = Field(description="As how many independent cells they count.")
    effect: float | None = Field(description="Share of the cells that lie elsewhere than usual, 0 to 1.")
    from_training: float | None = Field(description="The same against the cells that the model was made with.")


class LabelInUse(BaseModel):
    """How many cells of a class, as people read them blind, the model named right; `label` is null for all cells together."""

    label: str | None
    cells: int
    right: int
    low: float = Field(description="Lower 99 % limit of the share.")
    high: float
    floor: float | None = Field(description="The recall that the class must have (`gate.recall_floor`).")
    alarm: bool


class SiteWatch(BaseModel):
    """What is known of one site."""

    site: str
    model: str
    day: str
    usual_since: str | None = Field(description="The first day of what the site's cells are compared with.")
    measures: list[MeasureState]
    in_use: list[LabelInUse]
    pictures: list[str] = Field(description="Names for `GET /v1/watch/{site}/pictures/{name}`.")


class Watch(BaseModel):
    """All sites whose cells are in the store."""

    sites: list[SiteWatch]
