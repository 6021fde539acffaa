"""Command-line options made from the fields of an options class."""

import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]
Default = Annotated[bool, tyro.conf.arg(help_behavior_hint="(default)")]


def options_of(
    kind: type,
    *,
    take: tuple[str, ...] | None = None,
    leave_out: tuple[str, ...] = (),
    as_types: dict[str, Any] | None = None,
    describe: Callable[[str, str], str] = lambda name, text: text,
):
    """Gives a class, before it becomes a dataclass, the fields of an options class.

    A field that the class has itself stays: it is written in another way on the command line.

    Args:
        kind: a dataclass. The help of a field is the text that its type is annotated with, or the
            docstring below it; one with neither is no option.
        take: its fields that become options; None for all.
        leave_out: its fields that are no command-line options of this name.
        as_types: types for fields that take less on the command line than in Python.
        describe: the help of a field, from its name and text.
    """

    def decorate(cls):
        texts, hints = _docstrings(kind), typing.get_type_hints(kind, include_extras=True)
        own = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})}
        added = {}
        for field in dataclasses.fields(kind):
            name, shown = field.name, hints[field.name]
            if typing.get_origin(shown) is Annotated:
                shown, texts[name] = typing.get_args(shown)
            if take is not None and name not in take:
                continue
            if name in leave_out or name in own or name not in texts:
                continue
            shown = (as_types or {}).get(name, shown)
            default = str(field.default) if shown is str else field.default
            help_text = tyro.conf.arg(help=describe(name, texts[name]))
            added[name] = Annotated[_shown(shown, default), help_text]
            setattr(cls, name, default)
        cls.__annotations__ = cls.__annotations__ | added
        return cls

    return decorate


def taken(command: Any, kind: type, *names: str) -> dict[str, Any]:
    """The values of a command for the fields of an options class that both have.

    Args:
        names: fields that the command takes in another way.
    """
    fields = (field.name for field in dataclasses.fields(kind))
    return {x: getattr(command, x) for x in fields if x not in names and hasattr(command, x)}


def in_dashes(message: str, *kinds: type, words: bool = True) -> str:
    """A message with the names of options as they are written on the command line.

    Args:
        kinds: dataclasses whose fields are options.
        words: whether names stand in sentences, too, and not with a value alone.
    """
    fields = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    names = "|".join(sorted(set(fields), key=len, reverse=True))
    message = re.sub(rf"(?<![-\w/.])({names})=True", r"--\1", message)
    message = re.sub(rf"(?<![-\w/.])({names})=False", r"--no_\1", message)
    message = re.sub(rf"(?<![-\w/.])({names})=", r"--\1 ", message)
    if not words:
        return _with_dashes(message)
    # Words of English stay what they are.
    two_words = "|".join(sorted({x for x in fields if "_" in x}, key=len, reverse=True))
    # Nor are parts of paths options.
    message = re.sub(rf"(?<![-\w/.])({two_words})(?![\w=/]|\.\w)", r"--\1", message)
    return _with_dashes(message)


def _with_dashes(message: str) -> str:
    return re.sub(r"--[a-z]+(?:_[a-z]+)+", lambda found: found[0].replace("_", "-"), message)


def _shown(kind: Any, default: Any) -> Any:
    """A type as tyro shows it best: "X | None" without a word on None, false as a flag."""
    if kind is bool:
        return Default if default else Flag
    parts = typing.get_args(kind)
    if typing.get_origin(kind) not in (typing.Union, types.UnionType) or type(None) not in parts:
        return kind
    (value,) = (part for part in parts if part is not type(None))
    choices = typing.get_args(value) if typing.get_origin(value) is typing.Literal else ()
    metavar = f"{{{','.join(map(str, choices))}}}" if choices else _METAVARS[value]
    return Annotated[kind, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def _docstrings(kind: type) -> dict[str, str]:
    """The docstring below each field of a class and its bases."""
    texts = {}
    for base in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for node, below in itertools.pairwise(definition.body):
            match node, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(text))
                ):
                    texts[name] = inspect.cleandoc(text)
    return texts
