"""Why nobody is asked for a second opinion, and why none is answered or taken back."""

from dataclasses import dataclass

from serving.contract.errors import Refused


@dataclass(eq=False)
class NoSuchOpinion(Refused):
    """The report has no second opinion of this number."""

    number: int

    def __str__(self) -> str:
        return f"Nobody was asked for a second opinion {self.number} on this report."


@dataclass(eq=False)
class AsksThemselves(Refused):
    """A person asks nobody else."""

    def __str__(self) -> str:
        return "A second opinion is another person's: ask somebody else, or write a comment."


@dataclass(eq=False)
class AskedAlready(Refused):
    """The person was asked and has not answered."""

    of: str

    def __str__(self) -> str:
        return f"{self.of} was asked already and has not answered: take that back first, or write a comment."


@dataclass(eq=False)
class NotTheOneAsked(Refused):
    """A person answers who was not asked."""

    of: str

    def __str__(self) -> str:
        return f"{self.of} was asked, and nobody else can answer: write a comment, or take the question back and ask another one."


@dataclass(eq=False)
class TakenBackAlready(Refused):
    """The question was taken back."""

    def __str__(self) -> str:
        return "The question was taken back: ask again, or write a comment."


@dataclass(eq=False)
class AnsweredAlready(Refused):
    """What was answered is to be taken back."""

    def __str__(self) -> str:
        return "It was answered, and an answer stays in the record: who gave it can give a further one."
