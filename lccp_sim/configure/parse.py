"""From plain dictionaries to checked dataclasses, with one line per wrong key or value and a suggestion.

The caller passes a table of the variants of a part, by `kind`, so that this module depends on none of them.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lccp_sim.errors import ConfigError, nearest

T = TypeVar("T")


def parse(cls: type[T], plain: object, where: str) -> T:
    """An instance of the dataclass `cls` from plain values. Raises ConfigError with one line per wrong key or value.

    The message for a wrong key suggests the nearest right one. `where` is the dotted place of `plain` in the config.
    """
    from pydantic import TypeAdapter, ValidationError

    wrong = _unknown_keys(cls, plain, where)
    if wrong:
        raise ConfigError(*wrong)
    try:
        return TypeAdapter(cls).validate_python(plain)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            place = ".".join([where, *(str(part) for part in problem["loc"])])
            cause = problem.get("ctx", {}).get("error")
            if isinstance(cause, ConfigError):
                for line in cause.problems:
                    placed = "." in line.partition("=")[0]  # a variant does not know where it stands
                    lines.append(line if placed else f"{where}.{line}")
            elif problem["type"].startswith("missing"):
                lines.append(f"{place}: this key is required")
            else:
                lines.append(f"{place.removesuffix('.[key]')}={problem['input']!r}: {problem['msg'].lower()}")
        raise ConfigError(*lines) from None


def parse_kind(kinds: Mapping[str, type[T]], plain: object, where: str) -> T:
    """The variant of `kinds` that the `kind` key of `plain` names. Raises ConfigError with the nearest right kind."""
    if not isinstance(plain, Mapping) or "kind" not in plain:
        raise ConfigError(f"{where}: needs a `kind`, one of {', '.join(kinds)}")
    kind = plain["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ConfigError(f"{where}.kind={kind!r}: one of {', '.join(kinds)}{nearest(str(kind), kinds)}")
    return parse(kinds[kind], plain, where)


def _unknown_keys(cls: Any, plain: object, where: str) -> list[str]:
    """A line for each key of `plain` that the dataclass does not have, nested dataclasses included."""
    if not isinstance(plain, Mapping):
        return [f"{where}={plain!r}: must be a group of keys"]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    lines = [f"{where}.{key}: no such key{nearest(str(key), names)}" for key in plain if key not in names]
    for name in names:
        inner = hints[name]
        options = typing.get_args(inner) if isinstance(inner, types.UnionType) else (inner,)
        for option in options:
            if dataclasses.is_dataclass(option) and isinstance(plain.get(name), Mapping):
                lines += _unknown_keys(option, plain[name], f"{where}.{name}")
    return lines
