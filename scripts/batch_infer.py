"""Reconstructs every scene of a folder, resumably.

    python scripts/batch_infer.py SCENES --model facebook/VGGT-1B --out results --sparse-ratio 0.75

SCENES holds a folder of photographs for each scene; `results/NAME/predictions.npz` is what
`vggt-jax infer` writes under that name. Run it again to continue after an interruption.
"""

import argparse
import pathlib
import sys

from vggt_jax.checkpoints.errors import CheckpointError


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", type=pathlib.Path)
    parser.add_argument("--model", help="checkpoint or hub name; the small model without it")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of results")
    parser.add_argument("--size", type=int, help="side in pixels to resize to, see vggt-jax infer")
    parser.add_argument("--mode", choices=["crop", "pad", "budget"])
    parser.add_argument("--num-keys", type=int, help="patches to sample in attention over frames")
    parser.add_argument("--sparse-ratio", type=float, help="share of the blocks to leave out")
    parser.add_argument("--cdf-threshold", type=float, help="probability to keep")
    parser.add_argument("--pool-mode", choices=["avg", "max"])
    parser.add_argument("--token-order", choices=["raster", "hilbert", "tiles"])
    parser.add_argument("--min-tokens", type=int, default=4096,
                        help="scenes of fewer tokens run dense")  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=1, help="scenes in a batch")
    parser.add_argument("--readers", type=int, default=2, help="scenes read at a time")
    parser.add_argument("--writers", type=int, default=2, help="scenes written at a time")
    parser.add_argument("--no-memory-check", action="store_true",
                        help="try scenes that by the estimate do not fit")  # fmt: skip
    args = parser.parse_args()

    import vggt_jax
    from vggt_jax.cli.scene import chosen_attention

    settings = {name: getattr(args, name) for name in ("pool_mode", "token_order", "min_tokens")}
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        attention = chosen_attention(
            args.num_keys, args.sparse_ratio, args.cdf_threshold, **settings
        )
        report = vggt_jax.reconstruct_scenes(
            args.scenes,
            args.out,
            model=args.model,
            attention=attention,
            mode=args.mode,
            size=args.size,
            batch_size=args.batch_size,
            num_readers=args.readers,
            num_writers=args.writers,
            memory_check=not args.no_memory_check,
        )
    except (ValueError, CheckpointError) as error:
        sys.exit(f"batch_infer: error: {error}")
    for name, reason in report.failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    print(
        f"{len(report.written)} scenes written to {args.out}, {len(report.skipped)} were there, "
        f"{len(report.failed)} failed"
    )
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
