"""Validation of incoming text: the value under a row's key, and whether it is text. One message per cause."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lccp_sim.data.documents.document import Document, LeftOut, text_hash
from lccp_sim.errors import ConfigError, refuse

OnBadRow = Literal["refuse", "skip"]
VALUE_KINDS = {
    dict: "an object",
    list: "a list",
    bytes: "bytes",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "text",
}
ROW_REMEDY = "; fix it, or set on_bad_row to skip"


def check_policy(on_bad_row: str) -> None:
    """Raise ConfigError if `on_bad_row` is neither refuse nor skip."""
    refuse(on_bad_row not in ("refuse", "skip"), "on_bad_row", on_bad_row, "must be refuse or skip")


def unreadable(error: OSError, name: str) -> ConfigError:
    """The error for a file or folder that the system does not let us read."""
    what = error.strerror or " ".join(str(error).split())
    return ConfigError(f"{error.filename or name} cannot be read ({what}); change that, or leave it out")


@contextmanager
def needing(package: str, name: str) -> Iterator[None]:
    """Within the context, a failed import reports that `name` cannot be read without the package."""
    try:
        yield
    except ImportError as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name} cannot be read without {package} ({why}); pip install {package}") from error


def decode(data: bytes, name: str) -> str:
    """The text of UTF-8 bytes without a BOM. Raises ConfigError with the first invalid byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} is 0x{data[error.start]:02x}"
        encoding = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "ITS_ENCODING"
        raise ConfigError(f"{name} is not UTF-8: {what}; convert it (iconv -f {encoding} -t UTF-8)") from None


def field(row: Any, key: str, name: str) -> Any:
    """The value under a key; dots reach into objects unless a key has the full name. Raises ConfigError."""
    refused = f"{name} is {VALUE_KINDS.get(type(row), 'no object')}, not an object with the key {key!r}"
    if not isinstance(row, dict):
        raise ConfigError(f"{refused}; write one object a row")
    if key in row:
        return row[key]
    head, _, rest = key.partition(".")
    if rest and head in row:
        inner = row[head]
        if inner is None or isinstance(inner, dict):
            return None if inner is None else field(inner, rest, name)
        what = (
            f"{VALUE_KINDS.get(type(inner), 'no object')} under the key {head!r}, not an object with the key {rest!r}"
        )
        raise ConfigError(f"{name} holds {what}; set text_key to the key of a text")
    keys = ", ".join(map(str, row)) or "none"
    raise ConfigError(f"{name} has no key {key!r}, its keys are {keys}; set text_key to the right one")


def document(value: Any, key: str, name: str) -> Document | LeftOut:
    """The document of a row's value, or the reason for leaving it out; null counts as empty. Raises ConfigError."""
    if value is None:
        return LeftOut("null", name)
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        what = "token ids, not text; name their tokenizer.json in tokenized_with"
        raise ConfigError(f"{name} holds {what}, or the key of the text in text_key")
    if not isinstance(value, str):
        what = VALUE_KINDS.get(type(value), "no string")
        raise ConfigError(f"{name} holds {what} under the key {key!r}, not a string{ROW_REMEDY}")
    text = value.removeprefix("\ufeff")
    if at := next((i for i, sign in enumerate(text) if "\ud800" <= sign <= "\udfff"), -1) + 1:
        what = f"half a character (the lone surrogate U+{ord(text[at - 1]):04X} at character {at})"
        raise ConfigError(f"{name} holds {what}{ROW_REMEDY}")
    return Document(text, name, text_hash(text))
