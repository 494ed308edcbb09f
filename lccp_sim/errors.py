"""Errors that are not bugs. The command line prints the message of a UserError; any other error gives a traceback.

Design note: all kinds are defined here, not next to the code that raises them, so that catching one does not import
torch.
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
    """A line in a file of records is not a record: the line and the reason."""


class NotFinite(UserError):
    """A loss, gradient or measured value is not finite: its place and step."""


class NoSignal(UserError):
    """In reinforcement learning, all answers get the same reward: since when, and the rewards."""


class LostRank(UserError):
    """Another process of the run is gone, never arrived, or did not answer in time."""


class Halfway(RuntimeError):
    """An error within a collective operation: the other ranks cannot be informed and only see this rank end."""


class OutOfMemory(UserError):
    """The device had too little memory for a run: the expected memory, and what to change."""


def refuse(bad: object, key: str, value: object, rule: str) -> None:
    """Raise ConfigError with the key, the value and the rule if `bad` is true."""
    if bad:
        raise ConfigError(f"{key}={value!r}: {rule}")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar of `names`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def is_message(error: Exception) -> bool:
    """Whether an error is a message for the user and not a bug: our own, or one of the machine (a full disk)."""
    return isinstance(error, UserError | OSError)


def one_line(error: Exception) -> str:
    """The message of an error in one line. The message of a bug begins with its class."""
    line = " ".join(str(error).split())
    return line if is_message(error) else f"{type(error).__name__}: {line}"


@contextmanager
def heard_once() -> Iterator[None]:
    """Within the context, a thread that stores its error for its owner prints no traceback, unless it is a bug.

    TensorBoard's writer does this on a full disk: its owner gets the error at the next call.
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
