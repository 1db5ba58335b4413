"""Why the service does not let a request in, or may not carry it out."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.contract.errors import Refused


@dataclass(eq=False)
class UnknownKey(Refused):
    """No key was `given`, or it is none of the accepted ones."""

    given: bool

    def __str__(self) -> str:
        return "The API key is not one of the accepted keys." if self.given else "The API key is missing."


@dataclass(eq=False)
class LacksScope(Refused):
    """The key of the name `key` has none of the scopes `missing`."""

    key: str
    missing: Sequence[str]

    def __str__(self) -> str:
        return f"The key {self.key} lacks the scope {', '.join(self.missing)}."


@dataclass(eq=False)
class AnotherPerson(Refused):
    """The key is that of `person`, and the request names somebody else."""

    person: str

    def __str__(self) -> str:
        return f"The key is that of {self.person}: leave `by` out, or let it be that name."


@dataclass(eq=False)
class UnknownHost(Refused):
    """The request calls the service by a host name that it is not known by."""

    def __str__(self) -> str:
        return "The service is not known by the host name of this request."


@dataclass(eq=False)
class AnotherPage(Refused):
    """A browser sends the request for a web page that is not the service's own."""

    def __str__(self) -> str:
        return "The request comes from another web page; the service answers its own page, and programs."


@dataclass(eq=False)
class NotDirect(Refused):
    """The service asks for no key, and the request came through a proxy."""

    def __str__(self) -> str:
        return "Without API keys the service answers its own machine only, directly: make a key with `wbc keys add`."


@dataclass(eq=False)
class LogNotWritable(Refused):
    """The call cannot be written into the audit log, so nothing was done."""

    def __str__(self) -> str:
        return "Nothing was done: the call cannot be written into the audit log; the operator must make room for it."
