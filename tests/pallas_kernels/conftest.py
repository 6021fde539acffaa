"""The implementations under test, and what they have to compute, in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import (
    BlockMap,
    block_sparse_attention,
    devices,
    select_blocks,
)
from pallas_kernels.blocks import count_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Inputs that suit an implementation, and the smallest blocks that its contract allows."""

    t: int
    kv: int
    n: int
    h: int
    block_q: int
    block_k: int
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    smallest_q: int = 16
    smallest_k: int = 16

    @property
    def blocks(self):
        return {"block_q": self.block_q, "block_k": self.block_k}

    @property
    def qb(self):
        return count_blocks(self.t, self.block_q)

    @property
    def kb(self):
        return count_blocks(self.kv, self.block_k)

    @property
    def all(self):
        """How many tokens of each key block there are, if that is all of them."""
        return np.full(self.kb, self.block_k)

    @property
    def same(self):
        """The most by which two ways to the same output may differ.

        Sums of float32 in another order; of 16-bit types, weights and results are rounded, each by
        half of this at most.
        """
        return 2e-6 if self.dtype == jnp.float32 else float(jnp.finfo(self.dtype).eps) / 2


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An implementation under test: keywords that choose it, and inputs for it.

    `sizes` are those of most tests, so that one program serves them. `small` has three blocks of
    queries and six of keys, whatever the implementation.
    """

    options: dict
    sizes: Sizes
    small: Sizes

    @property
    def is_simulated(self):
        return self.options["implementation"] == "mosaic_gpu" and "interpret" in self.options


ANY = Sizes(t=131, kv=211, n=3, h=32, block_q=32, block_k=16)
ANY_SMALL = Sizes(t=67, kv=83, n=2, h=32, block_q=32, block_k=16)
HOPPER = Sizes(
    t=523,
    kv=803,
    n=3,
    h=64,
    block_q=128,
    block_k=64,
    dtype=jnp.dtype(jnp.bfloat16),
    smallest_q=128,
    smallest_k=64,
)
HOPPER_SMALL = dataclasses.replace(HOPPER, t=323, kv=339, n=2)
# Two tiles of queries for each of the four streams that the simulator has.
SIMULATED = dataclasses.replace(HOPPER, t=389, kv=211, n=2)

KERNELS = {
    "xla": Kernel({"implementation": "xla"}, ANY, ANY_SMALL),
    "triton-interpreted": Kernel({"implementation": "triton", "interpret": True}, ANY, ANY_SMALL),
    "triton": Kernel({"implementation": "triton"}, ANY, ANY_SMALL),
    "mosaic_gpu-interpreted": Kernel(
        {"implementation": "mosaic_gpu", "interpret": True}, SIMULATED, HOPPER_SMALL
    ),
    "mosaic_gpu": Kernel({"implementation": "mosaic_gpu"}, HOPPER, HOPPER_SMALL),
}
MARKS = {
    "triton": [pytest.mark.gpu],
    "mosaic_gpu-interpreted": [pytest.mark.new_jax],
    "mosaic_gpu": [pytest.mark.gpu, pytest.mark.new_jax],
}


def for_implementations(ids):
    """Parameters of a fixture; compiled kernels need a GPU."""
    return [pytest.param(name, id=name, marks=MARKS.get(name, ())) for name in ids]


TRITON_OR_XLA = ["xla", "triton-interpreted", "triton"]


def pytest_configure(config):
    for line in (
        (
            "simulated: runs in the simulator of Mosaic GPU kernels too, which takes seconds a "
            "call; what is not marked meets that kernel on a GPU only"
        ),
        "only(*ids): for these implementations of attention, whose contract allows the inputs",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(items):
    """Keeps the pairs of tests and implementations that the marks `simulated` and `only` mean."""

    def is_meant(item):
        kernel = item.callspec.params.get("kernel") if hasattr(item, "callspec") else None
        if kernel is None:
            return True
        if kernel == "mosaic_gpu-interpreted" and not item.get_closest_marker("simulated"):
            return False
        return all(kernel in mark.args for mark in item.iter_markers("only"))

    items[:] = filter(is_meant, items)


@pytest.fixture(scope="session", params=for_implementations(KERNELS))
def kernel(request):
    """Each implementation of attention but the oracle."""
    if request.param == "mosaic_gpu" and not devices.is_hopper():
        pytest.skip(f"{devices.device_kind()} is no GPU of the Hopper generation")
    return KERNELS[request.param]


@pytest.fixture(scope="session")
def attend(kernel):
    """`block_sparse_attention` by each implementation but the oracle."""
    return functools.partial(block_sparse_attention, **kernel.options)


@pytest.fixture(scope="session")
def sizes(kernel):
    """Inputs that suit the implementation."""
    return kernel.sizes


@pytest.fixture(scope="session")
def small(kernel):
    """Inputs of three blocks of queries and six of keys."""
    return kernel.small


@pytest.fixture(scope="session", params=for_implementations(TRITON_OR_XLA[1:]))
def attend_in_tiles(request):
    """`block_sparse_attention` by Triton's kernel, compiled and interpreted."""
    return functools.partial(block_sparse_attention, **KERNELS[request.param].options)


@pytest.fixture(scope="session", params=for_implementations(TRITON_OR_XLA))
def select(request):
    """`select_blocks` by each implementation."""
    return functools.partial(select_blocks, **KERNELS[request.param].options)


@pytest.fixture(scope="session")
def oracle():
    """`block_sparse_attention` by the oracle."""
    return functools.partial(block_sparse_attention, implementation="reference")


def draw_arrays(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.fixture(scope="session")
def draw():
    """Normal numbers of some shapes: `draw(seed, shape, ..., dtype=float32)`."""
    return draw_arrays


@pytest.fixture(scope="session")
def draw_case():
    """q, k, v and a mask that keeps about half: `draw_case(seed, t, kv, n, h, *blocks)`."""

    def make(seed, t, kv, n, h, block_q, block_k, dtype=jnp.float32):
        q, k, v = draw_arrays(seed, (t, n, h), (kv, n, h), (kv, n, h), dtype=dtype)
        mask = np.random.default_rng(seed).random((n, -(-t // block_q), -(-kv // block_k))) < 0.5
        return q, k, v, mask

    return make


@pytest.fixture(scope="session")
def roomy_map():
    """`BlockMap.from_dense_mask` with room for all blocks: one shape, so one compiled program."""

    @functools.partial(jax.jit, static_argnames=("block_q", "block_k"))
    def build(mask, *, block_q, block_k):
        return BlockMap.from_dense_mask(mask, block_q=block_q, block_k=block_k)

    return build


def count_tokens(length, block, kv_lengths=None):
    """How many tokens of each block count: NumPy's say in what the library computes with JAX."""
    starts = np.arange(0, length, block)
    exist = np.minimum(block, length - starts)
    if kv_lengths is None:
        return exist
    if np.ndim(kv_lengths) == 0:
        kv_lengths = kv_lengths - starts
    return np.clip(kv_lengths, 0, exist)


@pytest.fixture(scope="session")
def tokens_in_blocks():
    return count_tokens


@pytest.fixture(scope="session")
def pairs_that_count():
    """Which keys each query sees, bool [n t kv], given a mask of blocks."""

    def pairs(mask, t, kv, *, block_q, block_k, kv_lengths=None):
        block, place = np.divmod(np.arange(kv), block_k)
        counts = place < count_tokens(kv, block_k, kv_lengths)[block]
        return np.asarray(mask)[:, np.arange(t) // block_q][:, :, block] & counts

    return pairs


@pytest.fixture(scope="session")
def exact_attention():
    """Output [t n h] and log-sum-exp [t n] in float64, given which keys each query sees."""

    def attention(q, k, v, pairs, scale=None):
        q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
        seen = pairs.any((0, 1))
        k, v = (np.where(seen[:, None, None], x, 0.0) for x in (k, v))
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = np.where(pairs, scale * np.einsum("tnh,snh->nts", q, k), -np.inf)
        top = scores.max(-1, keepdims=True)
        weights = np.exp(scores - np.where(pairs.any(-1, keepdims=True), top, 0.0))
        total = weights.sum(-1, keepdims=True)
        with np.errstate(divide="ignore"):
            lse = (top + np.log(total))[..., 0].T
        weights = weights / np.where(total > 0, total, 1.0)
        return np.einsum("nts,snh->tnh", weights, v), lse

    return attention


@pytest.fixture(scope="session")
def plain_attention():
    """Dense attention as one writes it down: products of the given type, softmax in float32."""

    @jax.jit
    def attention(q, k, v, pairs, scale=None):
        product = functools.partial(
            jnp.einsum, precision="highest", preferred_element_type=jnp.float32
        )
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = product("tnh,snh->nts", q, k) * scale
        weights = jax.nn.softmax(scores, axis=-1, where=pairs)
        return product("nts,snh->tnh", weights.astype(v.dtype), v).astype(v.dtype)

    return attention


@pytest.fixture(scope="session")
def assert_close(relative_error):
    """Output and log-sum-exp are within float32's 1e-5 of what is expected."""

    def check(found, expected, limit=1e-5, lse_limit=None):
        (out, lse), (exact_out, exact_lse) = found, expected
        assert relative_error(out, exact_out) <= limit
        lse_limit = min(limit, 1e-5) if lse_limit is None else lse_limit
        np.testing.assert_array_equal(np.isfinite(lse), np.isfinite(exact_lse))
        np.testing.assert_allclose(lse, exact_lse, rtol=lse_limit, atol=lse_limit)

    return check


@pytest.fixture(scope="session")
def assert_right(assert_close, exact_attention, plain_attention, relative_error):
    """Output and log-sum-exp are those of float64, given which keys each query sees.

    In float32 to 1e-5. Of 16-bit types the error of the output is at most twice that of dense
    attention in the same type; scores are sums of exact products in float32.
    """

    def check(found, q, k, v, pairs, scale=None):
        exact = exact_attention(q, k, v, pairs, scale)
        limit = 1e-5
        if q.dtype != jnp.float32:
            seen = jnp.asarray(pairs.any((0, 1)))[:, None, None]
            k, v = (jnp.where(seen, x, 0) for x in (k, v))
            limit = 2 * relative_error(plain_attention(q, k, v, pairs, scale), exact[0])
        assert_close(found, exact, limit, lse_limit=1e-5)

    return check


@pytest.fixture
def pretend_h100(pretend_device):
    """Lets programs be lowered for an H100 that is not there: `with pretend_h100(): ...`."""
    kind = "NVIDIA H100 80GB HBM3"
    pretend_device("gpu", "9.0", kind)
    abstract = AbstractDevice(kind, num_cores=132, platform="gpu")
    return lambda: jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=abstract))
