"""Compares a model here with the official PyTorch code on photographs, output by output.

    git clone https://github.com/facebookresearch/vggt
    pip install torch einops
    python scripts/compare_official.py PHOTOGRAPHS --model facebook/VGGT-1B --official vggt

Both read the same checkpoint and the same frames, resized here as the official code does it, and
run in float32: the official code on a GPU if PyTorch has one, this one on JAX's device. Printed for
each output are the root mean square of the difference over that of the official output, and the
largest difference; the exit code is 1 if one is above --limit. For π³: `--model yyfz233/Pi3
--official Pi3`, a clone of https://github.com/yyfz/Pi3.

Without weights, `--model random-vggt` or `random-pi3` compares with those that the official code
draws.
"""

import argparse
import dataclasses
import sys
import tempfile
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch

import vggt_jax
from vggt_jax.checkpoints.sources import find_checkpoint, read_tensors
from vggt_jax.pipeline.inputs import read_frames

RANDOM = {"random-vggt": "vggt", "random-pi3": "pi3"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, nargs="+", help="a folder, or files")
    parser.add_argument("--model", required=True, help="an official checkpoint or hub name")
    parser.add_argument("--official", type=Path, required=True, help="clone of the official code")
    parser.add_argument("--frames", type=int, default=8, help="the first so many photographs")
    parser.add_argument("--size", type=int, help="side in pixels; the model's own by default")
    parser.add_argument("--limit", type=float, default=1e-3, help="of the relative differences")
    args = parser.parse_args()
    sys.path.insert(0, str(args.official))
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        kind, theirs, checkpoint = official_model(args.model, Path(folder))
        ours = vggt_jax.load_model(checkpoint)
    photographs = args.photographs[0] if len(args.photographs) == 1 else args.photographs
    frames = read_frames(photographs, ours, vggt_jax.Options(model=ours, size=args.size))
    images = np.asarray(frames.images[: args.frames], np.float32) / 255
    print(f"{len(images)} frames of {images.shape[2]}x{images.shape[1]}, {kind}")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = time.perf_counter()
    output = theirs.to(device)(torch.tensor(images.transpose(0, 3, 1, 2))[None].to(device))
    expected = {name: x.float().cpu().numpy() for name, x in output.items() if torch.is_tensor(x)}
    print(f"official code: {time.perf_counter() - start:.1f} s on {device}")
    del theirs, output
    start = time.perf_counter()
    result = ours(jnp.asarray(images)[None], compute_dtype=jnp.float32)
    found = {
        field.name: np.asarray(value)
        for field in dataclasses.fields(result)
        if (value := getattr(result, field.name)) is not None and field.name in expected
    }
    print(f"vggt-jax: {time.perf_counter() - start:.1f} s, compilation included")
    worst = 0.0
    print(f"{'output':20} {'relative rms':>12} {'largest':>12}")
    for name, value in found.items():
        difference = value.astype(np.float64) - expected[name]
        size = np.sqrt(np.mean(np.square(expected[name], dtype=np.float64)))
        relative = np.sqrt(np.mean(difference**2)) / size
        worst = max(worst, relative)
        print(f"{name:20} {relative:12.2e} {np.abs(difference).max():12.2e}")
    verdict = "within" if worst <= args.limit else "ABOVE"
    print(f"the largest relative difference, {worst:.2e}, is {verdict} {args.limit:g}")
    return int(not worst <= args.limit)


def official_model(name: str, folder: Path) -> tuple[str, torch.nn.Module, str]:
    """Which model it is, the official one with its weights, and the checkpoint of both."""
    torch.manual_seed(0)
    kind = RANDOM.get(name)
    if kind is None:
        tensors = read_tensors(find_checkpoint(name)[0])
        state = {key: torch.tensor(np.asarray(x, np.float32)) for key, x in tensors.items()}
        kind = "vggt" if any(key.startswith("aggregator.") for key in state) else "pi3"
    if kind == "vggt":
        from vggt.models.vggt import VGGT

        model = VGGT().eval()
    else:
        from pi3.models.pi3 import Pi3

        model = Pi3().eval()
    if name in RANDOM:
        checkpoint = folder / "model.pt"
        torch.save(model.state_dict(), checkpoint)
        return kind, model, str(checkpoint)
    model.load_state_dict(state, strict=False)
    return kind, model, name


if __name__ == "__main__":
    sys.exit(main())
