"""The JSON of `GET /v1/labelling/agreement`."""

from pydantic import BaseModel, Field


class KindKappa(BaseModel):
    """Cohen's kappa of one kind against all the rest."""

    answer: str
    kappa: float
    low: float
    high: float
    n: int
    named: int = Field(description="Cells that at least one of the two called so.")


class PairAgreement(BaseModel):
    """Two readers over the cells that both read without seeing the other's answer, and that neither called unsure."""

    readers: tuple[str, str]
    n: int
    kappa: float | None = Field(description="Cohen's kappa; null where there are no such cells, or all are of one kind.")
    low: float | None = Field(description="95 % limits; see docs/decisions/057.")
    high: float | None
    per_class: list[KindKappa] = Field(description="Kinds that one of the two named.")


class Hits(BaseModel):
    """`right` of `asked`, with exact (Clopper-Pearson) 95 % limits of the share."""

    right: int
    asked: int
    low: float
    high: float


class ConfusionRow(BaseModel):
    """Of about `cells` cells of the kind `truth`: the share of each answer with 95 % limits, in the order of the answers."""

    truth: str
    cells: float
    rates: list[float]
    low: list[float]
    high: list[float]


class ReaderConfusion(BaseModel):
    """An estimate of what a reader takes which cells for (Dawid and Skene)."""

    answers: list[str]
    rows: list[ConfusionRow]
    few: list[str] = Field(description="Kinds of which the reader had too few cells for a row.")


class ReaderAgreement(BaseModel):
    """One reader."""

    reader: str
    answered: int = Field(description="Tasks of the queue that readers are given cells of now.")
    left: int = Field(description="Tasks of that queue that this reader could still answer.")
    compared: int = Field(description="Answers that another reader's or the truth stands against.")
    self_agreement: Hits | None = Field(description="Cells that the reader had twice, and gave the same answer; null for none.")
    known: Hits | None = Field(default=None, description="Cells whose kind is known; only for whoever adjudicates.")
    confusion: ReaderConfusion | None = Field(description="Null while `compared` is below `needed_for_confusion`.")


class Agreement(BaseModel):
    """How far readers agree, over all queues of the workspace that asks now."""

    workspace: str | None
    pairs: list[PairAgreement]
    readers: list[ReaderAgreement]
    disputed: int = Field(description="Cells that wait for a third person.")
    unnamed: int = Field(description="Cells that nobody can name.")
    needed_for_confusion: int
    lead: bool
