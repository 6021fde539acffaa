"""Times one layer of attention over all frames: dense, to a sample, to blocks, to both.

    python scripts/bench_scene_attention.py --out docs/benchmarks/scene_attention_h200.jsonl

One JSON line a case: the median of some calls in milliseconds, of frames of 518x518 with the five
special tokens of VGGT, 16 heads of 64, bfloat16, normal random numbers. What a layer does is all in
it: selection, gathers, queries of special tokens, the merge of blocks and sample.
"""

import argparse
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import vggt_jax
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.scene_attention import SceneAttention

HEADS, HEAD_DIM, NUM_SPECIAL, GRID = 16, 64, 5, (37, 37)
# Tokens of a frame as the trunk pads them.
WIDTH = 1376


def cases(num_frames: int, sizes: list[int], samples_only: bool) -> dict[str, SceneAttention]:
    """Ways to attend, by name; samples are of these sizes."""
    blocks = functools.partial(vggt_jax.BlockSparse, min_tokens=0)
    found: dict[str, SceneAttention] = {"dense": vggt_jax.Dense()}
    for num_keys in sizes:
        for special in (False, True):
            found[f"{num_keys} keys" + " for special queries too" * special] = vggt_jax.Sampled(
                num_keys=num_keys, sample_special_queries=special, min_tokens=0
            )
    if samples_only:
        return found
    for kept, part in ((0.25, 0.2), (0.10, 0.4), (0.05, 0.4)):
        found[f"{kept:.0%}, blocks of 128x64"] = blocks(sparse_ratio=1 - kept)
        for size in ((64, 16, None), (64, 16, 16), (128, 64, None)):
            block_q, block_k, scored = size
            name = f"{kept:.0%}, blocks of {block_q}x{block_k}, {kept * part:.0%} of it a sample"
            found[name + (f", scored by {scored}" if scored else "")] = blocks(
                sparse_ratio=1 - kept * (1 - part),
                sample_ratio=kept * part,
                token_order="hilbert",
                block_q=block_q,
                block_k=block_k,
                score_block_q=scored,
            )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--num-keys", type=int, nargs="+", default=[8192, 10_240])
    parser.add_argument("--samples-only", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path, help="adds lines to this file")
    args = parser.parse_args()
    precision = Precision.from_compute_dtype("bfloat16")
    for num_frames in args.frames:
        shape = (1, num_frames, WIDTH, HEADS, HEAD_DIM)
        arrays = [jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3)]
        for name, attention in cases(num_frames, args.num_keys, args.samples_only).items():

            @jax.jit
            def attend(q, k, v, attention=attention):
                out, *_ = attention.attend(
                    q,
                    k,
                    v,
                    num_special=NUM_SPECIAL,
                    grid=GRID,
                    token_order=attention.token_order,
                    layer=jnp.int32(0),
                    num_frames=None,
                    precision=precision,
                )
                return out

            jax.block_until_ready(attend(*arrays))
            times = []
            for _ in range(args.repeats):
                start = time.perf_counter()
                jax.block_until_ready(attend(*arrays))
                times.append(1e3 * (time.perf_counter() - start))
            line = {
                "device": jax.devices()[0].device_kind,
                "jax": jax.__version__,
                "frames": num_frames,
                "attention": name,
                "ms": round(float(np.median(times)), 2),
                "spread_ms": round(max(times) - min(times), 2),
            }
            print(json.dumps(line), flush=True)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
