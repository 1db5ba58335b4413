"""The base of all that the service's domain refuses; serving/http/refused.py says how each is answered."""

from wbc_model.core.errors import WbcError


class Refused(WbcError):
    """What was asked for cannot be done. A subclass has the facts as fields; as a string it is one line for a person.

    Subclasses are dataclasses that are not frozen, because `contextlib` sets an exception's traceback. They compare by identity.
    """
