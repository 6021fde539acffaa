"""What the scripts about attention share: inputs, block lists, an exact reference, timing."""

import concurrent.futures
import dataclasses
import functools
import math
import os
import statistics
import time

import numpy as np

# A shorter call is repeated back to back until so many milliseconds are timed at once.
_MIN_TIMED_MS = 30
# So long a case runs before it is timed, so that the clocks of the GPU have settled.
_WARM_UP_MS = 300
# Tokens whose random numbers one thread draws.
_CHUNK = 4096


def random_tokens(which: int, tokens: int, heads: int, head_dim: int) -> np.ndarray:
    """Normal random numbers [t n h] in float32, the same for the same arguments everywhere."""
    out = np.empty((tokens, heads, head_dim), np.float32)

    def fill(start):
        rng = np.random.default_rng((which, start))
        rng.standard_normal(dtype=np.float32, out=out[start : start + _CHUNK])

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, tokens, _CHUNK)))
    return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockLists:
    """Which key blocks each query block of self-attention keeps: rows of a small table.

    Attributes:
        table: sorted key blocks of each row [r capacity], of which the first `counts` [r] count.
        picks: the row that each head and query block takes [n qb].
        tokens: queries, and keys.
        block_q, block_k: tokens in a block.
    """

    table: np.ndarray
    counts: np.ndarray
    picks: np.ndarray
    tokens: int
    block_q: int
    block_k: int

    @property
    def num_kv_blocks(self) -> int:
        return -(-self.tokens // self.block_k)

    def listed(self, head: int, q_block: int) -> np.ndarray:
        row = self.picks[head, q_block]
        return self.table[row, : self.counts[row]]

    def token_pairs(self) -> int:
        """Pairs of a query and a key that it sees, over all heads."""
        q_tokens, k_tokens = (tokens_of(self.tokens, b) for b in (self.block_q, self.block_k))
        live = np.arange(self.table.shape[1]) < self.counts[:, None]
        keys_of_row = np.sum(k_tokens[self.table] * live, axis=1)
        return int(np.sum(keys_of_row[self.picks] * q_tokens))

    def to_block_map(self):
        import jax
        import jax.numpy as jnp

        from pallas_kernels import BlockMap
        from pallas_kernels.block_map import index_dtype

        gather = jax.jit(lambda table, picks: table[picks])
        table = jnp.asarray(self.table, index_dtype(self.num_kv_blocks))
        return BlockMap(
            indices=gather(table, self.picks),
            counts=gather(jnp.asarray(self.counts, jnp.int32), self.picks),
            num_kv_blocks=self.num_kv_blocks,
            block_q=self.block_q,
            block_k=self.block_k,
        )


def tokens_of(tokens: int, block: int) -> np.ndarray:
    """How many tokens each block holds."""
    return np.minimum(block, tokens - np.arange(0, tokens, block))


def random_lists(
    keep: float,
    *,
    tokens: int,
    heads: int,
    block_q: int,
    block_k: int,
    uneven: bool = False,
    num_rows: int = 256,
) -> BlockLists:
    """Random lists that keep a share of the blocks, even numbers of blocks and odd ones.

    All lists have about the same length; if `uneven`, the longest has ten times the shortest's, the
    logarithms of the lengths being uniform.
    """
    rng = np.random.default_rng(0)
    shape = (heads, -(-tokens // block_q))
    num_kv_blocks = -(-tokens // block_k)
    if keep == 1.0 and not uneven:
        num_rows, counts = 1, np.array([num_kv_blocks])
    else:
        spread = 10 ** np.linspace(0, 1, num_rows) if uneven else np.ones(num_rows)
        counts = np.rint(spread * (keep * num_kv_blocks / spread.mean())).astype(int)
        # One block more and one less, in turn.
        counts += (np.arange(num_rows) % 4 == 1).astype(int) - (np.arange(num_rows) % 4 == 3)
        counts = np.clip(counts, 1, num_kv_blocks)
    table = np.zeros((num_rows, counts.max()), np.int32)
    for row, count in zip(table, counts, strict=True):
        row[:count] = np.sort(rng.permutation(num_kv_blocks)[:count])
    # Every row is picked equally often.
    picks = rng.permutation(np.arange(math.prod(shape)) % num_rows).reshape(shape)
    return BlockLists(
        table=table, counts=counts, picks=picks, tokens=tokens, block_q=block_q, block_k=block_k
    )  # fmt: skip


class Reference:
    """Attention in float64 on some query blocks, from arrays [t n h] of any framework."""

    def __init__(self, q, k, v, to_numpy=lambda x: np.asarray(x).astype(np.float64)):
        self._arrays = (q, k, v)
        self._to_numpy = to_numpy
        self._heads = {}

    def errors(self, out, lists: BlockLists) -> dict:
        """Of an output [t n h], on a block of three heads: one of the last, whose tokens end early;
        one that sees the last keys; any one."""
        num_heads, num_q_blocks = lists.picks.shape
        last = lists.num_kv_blocks - 1
        sees_last = np.any(
            (lists.table == last) & (np.arange(lists.table.shape[1]) < lists.counts[:, None]),
            axis=1,
        )
        middle = num_heads // 2
        seers = np.flatnonzero(sees_last[lists.picks[middle]])
        sample = [
            (0, num_q_blocks - 1),
            (middle, int(seers[len(seers) // 2]) if seers.size else num_q_blocks // 2),
            (num_heads - 1, num_q_blocks // 3),
        ]
        errors, exact = [], []
        for head, q_block in sample:
            rows = slice(q_block * lists.block_q, min((q_block + 1) * lists.block_q, lists.tokens))
            expected = self._exact(head, rows, lists, q_block)
            errors.append((self._to_numpy(out[:, head])[rows] - expected).ravel())
            exact.append(expected.ravel())
        errors, exact = np.concatenate(errors), np.concatenate(exact)
        rms = lambda x: float(np.sqrt(np.mean(np.square(x))))
        if not np.all(np.isfinite(errors)):
            return {"error": "the output is not finite"}
        return {
            "max_error": float(f"{np.max(np.abs(errors)):.3g}"),
            "relative_error": float(f"{rms(errors) / rms(exact):.3g}"),
        }

    def _exact(self, head, rows, lists, q_block):
        if head not in self._heads:
            self._heads[head] = [self._to_numpy(x[:, head]) for x in self._arrays]
        q, k, v = self._heads[head]
        keys = lists.listed(head, q_block)[:, None] * lists.block_k + np.arange(lists.block_k)
        keys = keys[keys < lists.tokens]
        scores = q[rows] @ k[keys].T / math.sqrt(q.shape[1])
        scores -= scores.max(axis=1, keepdims=True)
        weights = np.exp(scores, out=scores)
        return weights @ v[keys] / weights.sum(axis=1, keepdims=True)


def measure(
    time_many, repeats: int, *, max_s: float = 2.0, warm_up_ms: float = _WARM_UP_MS
) -> dict:
    """Milliseconds of one call: median and spread, where `time_many(n)` is those of n in a row.

    What was called must have run before. Stops early when repeats take more than `max_s` seconds,
    but not before the third.
    """
    once = max(time_many(1), 1e-3)
    calls = math.ceil(_MIN_TIMED_MS / once)
    if once < warm_up_ms:
        time_many(math.ceil(warm_up_ms / once))
    times = []
    while len(times) < repeats and (len(times) < 3 or sum(times) * calls < 1e3 * max_s):
        times.append(time_many(calls) / calls)
    digits = 2 if times[0] > 10 else 4
    return {
        "ms": round(statistics.median(times), digits),
        "spread_ms": round(max(times) - min(times), digits),
        "repeats": len(times),
        "calls": calls,
    }


def measure_jax(compiled, args, repeats: int, **limits: float) -> dict:
    """`measure` for a compiled program of JAX; `limits` are those of `measure`."""
    import jax

    def time_many(calls):
        start = time.perf_counter()
        for _ in range(calls):
            out = compiled(*args)
        jax.block_until_ready(out)
        return 1e3 * (time.perf_counter() - start)

    return measure(time_many, repeats, **limits)


@functools.cache
def failures() -> tuple[type[Exception], ...]:
    """What is raised where a kernel cannot be built for a device: it needs too much of something,
    or the implementation cannot do this."""
    import jax

    return (jax.errors.JaxRuntimeError, NotImplementedError, ValueError)


def compile_all(jobs: list) -> list:
    """Compiles `(function, arguments)` at the same time; gives what was raised where one failed."""
    import jax

    def lower(fn, args):
        try:
            return jax.jit(fn).lower(*args)
        except failures() as error:
            return error

    def compile_one(lowered):
        if isinstance(lowered, Exception):
            return lowered
        try:
            return lowered.compile()
        except failures() as error:
            return error

    lowered = [lower(*job) for job in jobs]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, lowered))


def explain(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def gib(num_bytes: int) -> float:
    return round(num_bytes / 2**30, 3)
