"""`pallas_kernels` by itself: blocks selected and attended to, without VGGT.

    python examples/kernels_alone.py

Somebody walks past 10 places 4 times: tokens of one place resemble each other, and attention
between different places is next to nothing. A quarter of the blocks gives nearly what all of them
give.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import BlockMap, block_sparse_attention, select_blocks

HEADS, HEAD_DIM, PLACES, TOKENS, ROUNDS = 2, 64, 10, 64, 4


def main():
    place, noise_q, noise_k = jax.random.split(jax.random.key(0), 3)
    places = 1.5 * jax.random.normal(place, (PLACES, HEADS, HEAD_DIM))
    seen = jnp.tile(jnp.repeat(places, TOKENS, axis=0), (ROUNDS, 1, 1))  # [token, head, head dim]
    q = seen + jax.random.normal(noise_q, seen.shape)
    k = seen + jax.random.normal(noise_k, seen.shape)
    length = len(seen)

    selection = select_blocks(q, k, sparse_ratio=0.75)
    sparse = block_sparse_attention(q, k, seen, selection.block_map)
    everything = BlockMap.full(num_heads=HEADS, q_length=length, kv_length=length)
    dense = block_sparse_attention(q, k, seen, everything)

    heads, rows, _ = selection.block_map.indices.shape
    print(f"{length} tokens: {rows} blocks of queries, {everything.num_kv_blocks} of keys")
    print(f"blocks kept by each of {heads} heads: {selection.density}")
    print(f"probability that they cover: {selection.retained_mass.mean():.3f}")
    print(f"the first row keeps blocks {selection.block_map.indices[0, 0].tolist()}")
    difference = jnp.linalg.norm(sparse - dense) / jnp.linalg.norm(dense)
    print(f"difference from dense attention: {difference:.1%}")


if __name__ == "__main__":
    main()
