"""Settings in files and words: TOML in and out, and `key=value` words that change single values."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel

from srquant.errors import UserError
from srquant.files import atomic_path


def read_toml(path: Path) -> dict[str, Any]:
    """The plain data of a TOML file.

    Raises:
        UserError: no such file, or it is not TOML; the line is named.
    """
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is no TOML file: it is not UTF-8 text") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"'{path}' is no TOML file: {error}") from error


def to_toml(settings: BaseModel) -> str:
    """Settings as TOML; values that are None are left out, reading it back gives equal settings."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def write_toml(settings: BaseModel, path: Path) -> None:
    """Write settings to a file.

    Raises:
        UserError: the path cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(to_toml(settings), encoding="utf-8")


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of plain data in one; where both have a value, that of `above` counts."""
    result = dict(below)
    for key, value in above.items():
        lower = result.get(key)
        both = isinstance(lower, Mapping) and isinstance(value, Mapping)
        result[key] = merged(lower, value) if both else value  # pyright: ignore[reportArgumentType]
    return result


def changed(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Plain data after words such as `training.epochs=3`, `method.gate=repaired` or `training.ema=`.

    A value is TOML; text needs no quotes. Nothing behind `=` takes the key away, since TOML has no word for nothing.
    Keys are checked when the settings are built.

    Raises:
        UserError: a word without `=`, without a key, or with a key inside something that is no table.
    """
    result = dict(values)
    for word in words:
        path, equals, text = word.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise UserError(f"--set '{word}': allowed is key=value, such as training.epochs=10")
        result = _with(result, names, _value(text.strip()), word)
    return result


def _with(values: Mapping[str, Any], names: list[str], value: Any, word: str) -> dict[str, Any]:
    """A copy of a tree with one value changed, or taken out where it is None."""
    result, (name, *rest) = dict(values), names
    if rest:
        table = result.get(name) or {}
        if not isinstance(table, Mapping):
            raise UserError(f"--set '{word}': '{name}' is {table!r:.40}, not a table with keys")
        result[name] = _with(table, rest, value, word)
    elif value is None:
        result.pop(name, None)
    else:
        result[name] = value
    return result


def _value(text: str) -> Any:
    """TOML's value of a text, None for an empty one, and the text itself where it is no TOML."""
    if not text:
        return None
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text
