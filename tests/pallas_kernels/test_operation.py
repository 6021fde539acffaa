"""What all operations share: backends are found by name and by place, and say what they cannot do."""

import ast
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from pallas_kernels import BlockMap, block_sparse_attention, linear
from pallas_kernels.attention.api import OPERATION as ATTENTION
from pallas_kernels.linear.api import OPERATION as LINEAR
from pallas_kernels.norm_rope.api import OPERATION as NORM_ROPE
from pallas_kernels.operation import Backend
from pallas_kernels.selection.api import OPERATION as SELECTION

OPERATIONS = [ATTENTION, LINEAR, NORM_ROPE, SELECTION]
PACKAGE = Path(pallas_kernels.__file__).parent


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_backends_import_no_other(operation):
    """What they share lies in other files of the folder. And each is a file of its operation's folder."""
    modules = {backend.name: backend.module for backend in operation.backends}
    folder = {module.rpartition(".")[0] for module in modules.values()}
    assert len(folder) == 1
    for name, module in modules.items():
        file = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.ImportFrom):
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            others = set(modules.values()) - {module}
            assert not names & others, f"{name} imports {names & others}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_there_is_a_public_function_and_a_way_for_any_device(operation):
    assert callable(getattr(pallas_kernels, operation.name))
    assert not operation["xla"].is_kernel
    assert len(set(operation.names)) == len(operation.names)


def put_first(operation, backend):
    """The backend as the preferred one, until the generator goes on."""
    operation.backends.insert(0, backend)
    yield backend
    operation.backends.remove(backend)


X, KERNEL = jnp.ones((3, 4)), jnp.full((4, 5), 0.5)


@pytest.fixture
def halves():
    """A backend of `linear` for rows of four, which gives half of what it should."""

    def unsupported_because(call):
        size = call.x.shape[-1]
        return None if size == 4 else f"rows of {size} numbers are not supported (4)"

    run = lambda call: call.x @ call.kernel / 2
    functions = types.SimpleNamespace(run=run, unsupported_because=unsupported_because)
    yield from put_first(LINEAR, Backend(name="halves", module=functions))


def test_another_backend_is_chosen(halves):
    """By its place in the list, and by its name."""
    np.testing.assert_array_equal(linear(X, KERNEL), np.ones((3, 5)))
    np.testing.assert_array_equal(linear(X, KERNEL, implementation="halves"), np.ones((3, 5)))
    np.testing.assert_array_equal(linear(X, KERNEL, implementation="xla"), np.full((3, 5), 2.0))


def test_another_backend_says_what_it_cannot_do(halves):
    wide, kernel = jnp.ones((3, 6)), jnp.ones((6, 5))
    np.testing.assert_array_equal(linear(wide, kernel), np.full((3, 5), 6.0))
    message = (
        r"^halves: rows of 6 numbers are not supported \(4\); use implementation='xla' or None$"
    )
    with pytest.raises(NotImplementedError, match=message):
        linear(wide, kernel, implementation="halves")
    with pytest.raises(ValueError, match="is unknown; use 'halves', 'mosaic_gpu', 'xla' or None"):
        linear(X, KERNEL, implementation="quarters")


def test_a_list_without_it_is_as_before():
    assert "halves" not in LINEAR.names
    np.testing.assert_array_equal(linear(X, KERNEL), np.full((3, 5), 2.0))


class Twice:
    """Settings of a kernel that gives a number times a factor."""

    def __init__(self, factor=2):
        self.factor = factor

    def check(self, call):
        if self.factor < 1:
            raise ValueError(f"factor={self.factor} must be at least 1")


@pytest.fixture
def kernel_with_settings():
    """A kernel of attention that is no attention, on a device that nobody has."""

    def run(call, *, config, interpret):
        assert interpret
        return config.factor * call.v[: len(call.q)], jnp.zeros(call.q.shape[:2])

    functions = types.SimpleNamespace(run=run, configure=lambda call: Twice(3))
    device = lambda *, interpret: None if interpret else "no such device"
    options = {"module": functions, "device": device, "config_type": Twice}
    yield from put_first(ATTENTION, Backend(name="twice", **options))


def test_a_kernel_with_settings(kernel_with_settings):
    v = jnp.asarray(np.random.default_rng(0).normal(size=(32, 1, 32)), jnp.float32)
    block_map = BlockMap.full(1, 32, 32, block_q=16, block_k=16)
    attend = lambda v, **options: block_sparse_attention(v, v, v, block_map, **options)
    simulated = {"implementation": "twice", "interpret": True}
    np.testing.assert_array_equal(attend(v, **simulated), 3 * v)
    np.testing.assert_array_equal(attend(v, config=Twice(5), interpret=True), 5 * v)
    with pytest.raises(ValueError, match="factor=0 must be at least 1"):
        attend(v, config=Twice(0), interpret=True)
    with pytest.raises(ValueError, match="implementation='twice' takes a Twice, not config={}"):
        attend(v, config={}, **simulated)
    with pytest.raises(NotImplementedError, match="twice: no such device; use implementation="):
        attend(v, implementation="twice")
    # The device has none, so that the next in the list is taken; its gradient is XLA's, whatever it
    # computes.
    assert np.abs(attend(v) - attend(v, implementation="reference")).max() < 1e-5
    through = jax.vjp(lambda v: attend(v, **simulated), v)[1](v)[0]
    expected = jax.vjp(lambda v: attend(v, implementation="xla"), v)[1](v)[0]
    np.testing.assert_array_equal(through, expected)


def test_other_values_compile_nothing_new():
    """Settings and the choice are static, all else is not."""
    from pallas_kernels.selection import api

    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 1, 32)), jnp.float32)
    select = lambda **rule: pallas_kernels.select_blocks(x, x, block_q=16, block_k=16, **rule)
    api._select.clear_cache()
    for ratio in (0.5, 0.45, np.array([0.5])):  # which have room for as many blocks
        select(sparse_ratio=ratio)
    assert api._select._cache_size() == 1
    for threshold in (0.2, 0.9):
        select(cdf_threshold=threshold)
        select(sparse_ratio=0.5, cdf_threshold=threshold)
        select(sparse_ratio=0.9, cdf_threshold=threshold)
    assert api._select._cache_size() == 2
