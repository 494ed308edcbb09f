"""What can go wrong that is no bug. The command line prints a UserError as its message; all else is a traceback.

Design note: each kind lives here, not next to the code that raises it, so that whoever catches one imports no torch.
"""

import difflib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A message for the user: what is wrong, where, and the remedy."""


class ConfigError(UserError, ValueError):
    """Wrong keys, values or files: one line each, with the key, the value, the rule and the remedy.

    A ValueError, because pydantic collects these while it builds dataclasses.
    """

    def __init__(self, *problems: str):
        super().__init__(*problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)

    @property
    def problems(self) -> list[str]:
        """Each problem, one line."""
        return list(self.args)


class DamagedRecords(UserError, ValueError):
    """A line of a file of records that is no record: which one, and why."""


class NotFinite(UserError):
    """A loss, gradient or measured value that is not finite: where, and at which step."""


class NoSignal(UserError):
    """Reinforcement learning whose rewards tell no answers apart: since when, and what they are."""


class LostRank(UserError):
    """Another process of the run is gone, never came, or did not answer in time."""


class Halfway(RuntimeError):
    """An error in the middle of what all ranks do together: the others cannot be told, they see this one go."""


class OutOfMemory(UserError):
    """The device had too little memory for a run: what plan expected of it, and what to change."""


def refuse(bad: object, key: str, value: object, rule: str) -> None:
    """Raise ConfigError with the key, the value and the rule where `bad` is true."""
    if bad:
        raise ConfigError(f"{key}={value!r}: {rule}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar of `names`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_message(error: Exception) -> bool:
    """Whether an error is a message for the user, not a bug: our own, or the machine's (a full disk)."""
    return isinstance(error, UserError | OSError)


def one_line(error: Exception) -> str:
    """The message of an error in one line; that of a bug begins with its class."""
    line = " ".join(str(error).split())
    return line if is_message(error) else f"{type(error).__name__}: {line}"


@contextmanager
def heard_once() -> Iterator[None]:
    """Within the context, a thread that keeps its error for its owner prints no traceback, unless it is a bug.

    TensorBoard's writer of a full disk does: its owner gets the error at the next call.
    """
    before = threading.excepthook

    def hear(told: threading.ExceptHookArgs) -> None:
        kept = getattr(told.thread, "exception", None)
        if not isinstance(kept, Exception) or kept is not told.exc_value or not is_message(kept):
            before(told)

    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = before
