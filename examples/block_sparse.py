"""Attention over all frames with most of its blocks left out, and what was kept.

    python examples/block_sparse.py

Reconstructs the eight sample pictures. So few tokens make few blocks, and dense attention is
faster: hence small blocks here, and `min_tokens=0`. With hundreds of photographs leave these three
settings out.
"""

import pathlib

import numpy as np

import vggt_jax

SAMPLE = pathlib.Path(vggt_jax.__file__).parent / "samples" / "cellar"


def main():
    model = vggt_jax.load_model()
    sparse = vggt_jax.BlockSparse(sparse_ratio=0.75, block_q=32, block_k=16, min_tokens=0)
    recon = vggt_jax.infer(SAMPLE, model=model, attention=sparse)
    dense = vggt_jax.infer(SAMPLE, model=model)

    # Arrays [layer, head]: one number for each head of each layer of the trunk.
    stats = recon.attention_stats
    print("layer  blocks kept  probability covered  arithmetic saved  entropy")
    for layer in range(len(stats.density)):
        kept, covered, saved, entropy = (
            float(np.mean(values[layer]))
            for values in (stats.density, stats.covered, stats.saved, stats.entropy)
        )
        print(f"{layer:5}  {kept:11.0%}  {covered:19.0%}  {saved:16.0%}  {entropy:7.2f}")
    difference = np.median(abs(recon.depth - dense.depth) / dense.depth)
    print(f"depth differs from that of dense attention by {difference:.1%} (median)")


if __name__ == "__main__":
    main()
