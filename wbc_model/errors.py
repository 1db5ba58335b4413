"""The errors a user can act on; everything else is a defect and keeps its traceback."""


class WbcError(Exception):
    """One clear line that names the file, row or field and what to do; the command line prints it and exits with 1."""


class ImageRejected(WbcError):
    """An image that cannot be used. `reason` is one of the quarantine reasons of the design (`undecodable`, ...)."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
