"""The implementations under test, and what they have to compute, in float64."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import BlockMap, block_sparse_attention, devices, select_blocks


def for_implementations(ids):
    """Parameters of a fixture: keywords that choose an implementation; compiled kernels need a GPU."""
    kernels = {
        "triton": {"implementation": "triton"},
        "triton-interpreted": {"implementation": "triton", "interpret": True},
        "xla": {"implementation": "xla"},
    }
    marks = {"triton": pytest.mark.gpu}
    return [pytest.param(kernels[id], id=id, marks=marks.get(id, ())) for id in ids]


ATTENTION = for_implementations(["xla", "triton-interpreted", "triton"])
TILED_ATTENTION = for_implementations(["triton-interpreted", "triton"])
SELECTION = for_implementations(["xla", "triton-interpreted", "triton"])


@pytest.fixture(scope="session", params=ATTENTION)
def attend(request):
    """`block_sparse_attention` by each implementation but the oracle."""
    return functools.partial(block_sparse_attention, **request.param)


@pytest.fixture(scope="session", params=TILED_ATTENTION)
def attend_in_tiles(request):
    """`block_sparse_attention` by each implementation that takes a config."""
    return functools.partial(block_sparse_attention, **request.param)


@pytest.fixture(scope="session", params=SELECTION)
def select(request):
    """`select_blocks` by each implementation."""
    return functools.partial(select_blocks, **request.param)


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
    """q, k, v and a mask that keeps about half: `draw_case(seed, t, kv, n, h, block_q, block_k)`."""

    def make(seed, t, kv, n, h, block_q, block_k, dtype=jnp.float32):
        q, k, v = draw_arrays(seed, (t, n, h), (kv, n, h), (kv, n, h), dtype=dtype)
        mask = np.random.default_rng(seed).random((n, -(-t // block_q), -(-kv // block_k))) < 0.5
        return q, k, v, mask

    return make


@pytest.fixture(scope="session")
def roomy_map():
    """`BlockMap.from_dense_mask` with room for all blocks: one shape, hence one compiled program."""

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
    def attention(q, k, v, pairs):
        product = functools.partial(
            jnp.einsum, precision="highest", preferred_element_type=jnp.float32
        )
        scores = product("tnh,snh->nts", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(scores, axis=-1, where=pairs)
        return product("nts,snh->tnh", weights.astype(v.dtype), v).astype(v.dtype)

    return attention


@pytest.fixture
def pretend_device(monkeypatch):
    """Makes the library believe in a device: `pretend_device(backend, compute_capability, kind)`."""

    def pretend(backend, compute_capability=None, kind="a device"):
        device = types.SimpleNamespace(device_kind=kind)
        if compute_capability is not None:
            device.compute_capability = compute_capability
        fake = types.SimpleNamespace(default_backend=lambda: backend, devices=lambda: [device])
        monkeypatch.setattr(devices, "jax", fake)

    return pretend


@pytest.fixture
def pretend_h100(pretend_device):
    """Lets programs be lowered for an H100 that is not there: `with pretend_h100(): ...`."""
    kind = "NVIDIA H100 80GB HBM3"
    pretend_device("gpu", "9.0", kind)
    abstract = AbstractDevice(kind, num_cores=132, platform="gpu")
    return lambda: jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=abstract))
