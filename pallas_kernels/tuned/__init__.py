"""Tile sizes and thresholds by device, as data.

Each TOML file of this folder holds what was measured on one kind of device, which its line
`device_kind` names as JAX does; `default.toml` holds what other devices get, and what a device's
own file does not say. Values have dotted names, such as `linear.min_tiles_per_multiprocessor`.

Nothing is read before the first value is asked for. Values are asked for while programs are traced:
a compiled program keeps those that it was traced with.
"""

import contextlib
import functools
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pallas_kernels import devices

_overrides: dict[str, Any] = {}


def value(name: str) -> Any:
    """The value for the default device, or the one for all devices.

    Raises:
        KeyError: no table has this name.
    """
    if name in _overrides:
        return _overrides[name]
    tables = _tables()
    for table in (tables.get(devices.device_kind(), {}), tables["default"]):
        found = _look_up(table, name)
        if found is not None:
            return found
    raise KeyError(f"no tuned value is called {name!r}; pallas_kernels/tuned/default.toml has all")


@contextlib.contextmanager
def override(values: Mapping[str, Any]) -> Iterator[None]:
    """Other values, in all threads, for what is traced inside of `with`.

    What was traced before is not traced again: `override` has no influence on a function of
    `jax.jit` that is called again with arrays of the same shapes.

        with tuned.override({"linear.min_tiles_per_multiprocessor": 0}):
            ...

    Raises:
        KeyError: a name that no table has.
    """
    for name in values:
        if _look_up(_tables()["default"], name) is None:
            raise KeyError(f"no tuned value is called {name!r}")
    before = dict(_overrides)
    _overrides.update(values)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


def device_kinds() -> tuple[str, ...]:
    """The devices that something was tuned for, as JAX calls them."""
    return tuple(kind for kind in _tables() if kind != "default")


@functools.cache
def _tables() -> dict[str, dict[str, Any]]:
    """By kind of device, and "default"."""
    tables = {}
    for path in sorted(Path(__file__).parent.glob("*.toml")):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        tables[table.pop("device_kind", path.stem)] = table
    return tables


def _look_up(table: Any, name: str) -> Any:
    for part in name.split("."):
        if not isinstance(table, dict) or part not in table:
            return None
        table = table[part]
    return table
