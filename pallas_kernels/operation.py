"""What all operations of this package share: which backend runs a call, and its gradient.

An operation is a list of backends in the order of preference. The arguments of a call are one
object, a pytree whose static fields are what a program is compiled for; every function of a backend
takes it. The file of an operation, `api.py`, makes this object, lists the backends and says what is
special about the gradient.
"""

import dataclasses
import functools
import importlib
from collections.abc import Iterable
from typing import Any, Literal, Protocol

import jax


class Device(Protocol):
    """Why a kind of kernel cannot run on the default device, or be interpreted; None if it can."""

    def __call__(self, *, interpret: bool) -> str | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Backend:
    """One way to run an operation: its name, and the functions in its file.

    The file imports no other backend. It has

    - `run(call)`: the result. Kernels also take `interpret`, and those with settings `config`.

    and may have

    - `unsupported_because(call)`: why it cannot run this call; None if it can.
    - `pays_off(call)`: whether to prefer it to what follows in the list, where none is named.
    - `configure(call)`: the tuned settings. Wherever there is a `config_type`.

    Attributes:
        name: how `implementation` calls it.
        module: the file, by its full name: it is imported only if a call may run on it. Or an
            object with these functions.
        device: what a kernel needs; None for what is no kernel and runs on any device.
        config_type: the type of a kernel's settings, or None. It has a method `check(call)`, which
            raises ValueError for settings that do not fit the arguments.
    """

    name: str
    module: Any
    device: Device | None = None
    config_type: type | None = None

    @property
    def is_kernel(self) -> bool:
        return self.device is not None

    def unsupported_because(self, call, *, interpret: bool = False) -> str | None:
        """Why it cannot run this call on the default device; None if it can."""
        # A file that needs another device is not imported.
        if self.device is not None and (reason := self.device(interpret=interpret)):
            return reason
        return self._function("unsupported_because", lambda call: None)(call)

    def pays_off(self, call) -> bool:
        return self._function("pays_off", lambda call: True)(call)

    def configure(self, call):
        return None if self.config_type is None else self._function("configure")(call)

    def run(self, call, config, interpret: bool):
        options = {}
        if self.is_kernel:
            options["interpret"] = interpret
        if self.config_type is not None:
            options["config"] = config
        return self._function("run")(call, **options)

    def _function(self, name, *default):
        module = self.module
        if isinstance(module, str):
            module = importlib.import_module(module)
        return getattr(module, name, *default)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """An operation and the backends that can run it.

    Attributes:
        name: of the public function.
        backends: in the order of preference; the one called "xla" runs on any device and has the
            gradient. A list: what is put into it is found by its name and chosen by its place. It
            is read where a call is traced, so programs that are compiled already do not change.
        gradient: what a kernel does under differentiation. "recomputed": it runs, and the way back
            recomputes with XLA; "xla": XLA runs, both ways; None: nothing is ever differentiated.
    """

    name: str
    backends: list[Backend]
    gradient: Literal["recomputed", "xla"] | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(backend.name for backend in self.backends)

    def __getitem__(self, name: str) -> Backend:
        return next(backend for backend in self.backends if backend.name == name)

    def unsupported_because(self, call) -> dict[str, str | None]:
        """For each kernel, by name, why it cannot run this call here; None where it can."""
        return {x.name: x.unsupported_because(call) for x in self.backends if x.is_kernel}

    def choose(
        self, call, *, implementation: str | None = None, config=None, interpret: bool = False
    ) -> "Chosen":
        """The backend for a call, and its settings.

        Args:
            implementation: a name means that backend or an error; None the first in the list that
                can do this here and pays off. Settings imply the kernel that they are for, and
                `interpret` the last kernel in the list, which asks for the least.
            config: settings of a kernel; None for the tuned ones.
            interpret: run the kernel in Pallas's interpreter, on any device.

        Raises:
            ValueError: what no device could make sense of.
            NotImplementedError: the backend named cannot do this here.
        """
        named = self._named(call, implementation, config, interpret)
        if named is None:
            backend = next(
                backend
                for backend in self.backends
                if backend.unsupported_because(call) is None and backend.pays_off(call)
            )
        else:
            backend = named
            if reason := named.unsupported_because(call, interpret=interpret):
                raise NotImplementedError(
                    f"{named.name}: {reason}; use implementation='xla' or None"
                )
        config = backend.configure(call) if config is None else config
        return Chosen(self, backend, config, interpret)

    def _named(self, call, implementation, config, interpret) -> Backend | None:
        """The backend that the arguments name or imply, checked; None if they leave it open."""
        kernels = [x for x in self.backends if x.is_kernel]
        types = {x.name: x.config_type for x in kernels if x.config_type is not None}
        implied = [name for name, kind in types.items() if isinstance(config, kind)]
        if implementation is None and implied:
            implementation = implied[0]
        if implementation is None and interpret:
            implementation = kernels[-1].name
        if implementation not in (None, *self.names):
            names = ", ".join(map(repr, self.names))
            raise ValueError(f"{implementation=} is unknown; use {names} or None")
        named = None if implementation is None else self[implementation]
        if config is not None:
            if implementation not in types:
                raise ValueError(
                    f"{implementation=} has no settings; leave out {config=}, or use "
                    f"{_either(types)}"
                )
            if implementation not in implied:
                expected = types[implementation].__name__
                raise ValueError(f"{implementation=} takes a {expected}, not {config=}")
        if interpret and named not in kernels:
            raise ValueError(
                f"{implementation=} is no kernel; leave out {interpret=}, or use "
                f"{_either(x.name for x in kernels)}"
            )
        if config is not None:
            config.check(call)
        return named


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What runs a call. It can be hashed, and is a static argument where a call is compiled."""

    operation: Operation
    backend: Backend
    config: Any
    interpret: bool

    def __call__(self, call):
        """The result, which has the gradient that the operation says."""
        if self.backend.is_kernel and self.operation.gradient is not None:
            return _run_kernel(self, call)
        return self.run(call)

    def run(self, call):
        return self.backend.run(call, self.config, self.interpret)

    def run_xla(self, call):
        return self.operation["xla"].run(call, None, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_kernel(chosen: Chosen, call):
    return chosen.run(call)


def _forward(chosen, call):
    if chosen.operation.gradient == "xla":
        return jax.vjp(chosen.run_xla, call)
    return _run_kernel(chosen, call), call


def _backward(chosen, saved, cotangent):
    pull_back = saved
    if chosen.operation.gradient == "recomputed":
        _, pull_back = jax.vjp(chosen.run_xla, saved)
    return pull_back(cotangent)


_run_kernel.defvjp(_forward, _backward)


def _either(names: Iterable[str]) -> str:
    return " or ".join(map(repr, names))
