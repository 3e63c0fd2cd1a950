"""Typed fields of a dict that was read from a file: the types are checked before anything uses the values."""
import reprlib
import types
import typing
from collections.abc import Collection
from typing import Any


def check_fields(value: Any, hints: dict[str, Any], name: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """Return ``value`` if it is a dict with the given fields, each of its type.

    Args:
        value: Anything, as it was read.
        hints: Type of each field, see ``fits``.
        name: Name of the dict in the error messages.
        optional: Fields that may be missing.

    Raises:
        ValueError: ``value`` is no dict, or a field is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError(f'{name} must be a dict, got {shown(value)}')
    for field in hints:
        if field not in value and field not in optional:
            raise ValueError(f"{name} lacks the field '{field}'; the file is damaged, or another version of a2aug_timm "
                             'wrote it')
    for field, content in value.items():
        if field not in hints:
            raise ValueError(f'{name} has the unknown field {shown(field)}; the file is damaged, or a newer version of '
                             'a2aug_timm wrote it')
        if not fits(content, hints[field]):
            raise ValueError(f"the field '{field}' of {name} must be {_name_of(hints[field])}, got {shown(content)}")
    return value


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of an annotation.

    Known are ``Any``, classes, unions, ``list[T]`` (tuples fit too), ``tuple[T, …]`` of fixed length (lists fit too)
    and ``dict[K, V]``. An int fits ``float``; a bool fits ``bool`` alone.
    """
    if hint is Any:
        return True
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(fits(item, parts[0]) for item in value)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(parts) and all(map(fits, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, parts[0]) and fits(item, parts[1]) for key, item in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def is_json(value: Any) -> bool:
    """Whether a value consists of JSON's types alone; tuples are lists."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_json, value))
    return value is None or isinstance(value, (bool, int, float, str))


def shown(value: Any) -> str:
    """A value in an error message, shortened."""
    return reprlib.repr(value)


def _name_of(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
