"""Frozen dataclasses to JSON and back. Unknown keys are dropped, missing ones take the field's default: records of
an older version stay readable."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")


def encode(value: object) -> Any:
    """A value of dataclasses, tuples, mappings, enums and plain values as what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], data: Mapping[str, Any]) -> T:
    """A dataclass from what `encode` made of it."""
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]  # a class is hashable; mypy takes T for its instances
    return kind(**{name: _decode(hints[name], item) for name, item in data.items() if name in hints})


@lru_cache(maxsize=64)
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _decode(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode(next(part for part in arguments if part is not type(None)), value)
    if origin is tuple:
        return tuple(_decode(arguments[0], item) for item in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return decode(hint, value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    return value
