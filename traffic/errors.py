"""What may be wrong with a store, or with a score that is given."""


class WrongStore(ValueError):
    """It is no store, or one of another version."""


class StoreUnavailable(OSError):
    """It cannot be read or written now; the message says why."""


class NotScored(Exception):
    """A score is not taken; the message says why."""


class Unknown(NotScored):
    """There is no such answer, or it is another caller's, which nobody is told apart."""


class Expired(NotScored):
    """The answer is older than scores are taken for."""


class NoAnswer(NotScored):
    """There was no answer to be scored, or nothing that it could count for."""


class Conflict(NotScored):
    """Another score was given under the same key."""


class ExchangeRefused(OSError):
    """The repository where servers exchange outcomes cannot be read or written now; the message says why."""


class OtherStore(ExchangeRefused):
    """It holds what another store said under the same name of a server."""


class MovedOn(Exception):
    """Another server has written to it meanwhile: look again at what is there."""
