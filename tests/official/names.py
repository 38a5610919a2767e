"""Prints what a package named `runta` offers, as JSON: run it with the interpreter of the package to be asked."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
from typing import Any

import runta


def describe_call(call: Any) -> list[list[Any]]:
    """Each parameter: name, kind, default."""
    return [
        [name, parameter.kind.name, None if parameter.default is parameter.empty else describe_value(parameter.default)]
        for name, parameter in inspect.signature(call).parameters.items()
        if name != "self"
    ]


def describe_value(value: Any) -> Any:
    """A default as something that can be compared: enums by their value, None apart from no default."""
    if isinstance(value, enum.Enum):
        return value.value
    return "None" if value is None else value


def describe_class(kind: type) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for base in reversed(kind.__mro__[:-1]):
        for name, member in vars(base).items():
            if name.startswith("_") or base in (Exception, BaseException, str, enum.Enum, enum.StrEnum):
                continue
            if isinstance(member, property):
                members[name] = "property"
            elif inspect.isfunction(member):
                members[name] = {"async": inspect.iscoroutinefunction(member), "parameters": describe_call(member)}
    described: dict[str, Any] = {"members": members}
    if issubclass(kind, enum.Enum):
        described["values"] = {name: member.value for name, member in kind.__members__.items()}
    elif dataclasses.is_dataclass(kind):
        described["fields"] = [[field.name, describe_default(field)] for field in dataclasses.fields(kind)]
    elif issubclass(kind, Exception):
        described["bases"] = [base.__name__ for base in kind.__mro__[1:-1] if base.__module__.startswith("runta")]
    else:
        described["init"] = describe_call(kind.__init__)
    return described


def describe_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return describe_value(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return f"a new {type(field.default_factory()).__name__}"
    return None


if __name__ == "__main__":
    print(json.dumps({name: describe_class(getattr(runta, name)) for name in sorted(runta.__all__)}, default=str))
