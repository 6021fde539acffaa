"""Compares models with goldens of the official code: every array of every case of a folder.

    python scripts/check_goldens.py FOLDER

A folder holds toy checkpoints in the official layout, `NAME.safetensors` with `NAME.json` beside
them, their cases, `NAME.CASE.npz`, with inputs, intermediates and outputs under official names, and
`noise_bounds*.json`: by model and array, as `suggested_bound`, how far from a golden float32
may be: the largest difference over the root mean square of the golden.

Prints, by model and array, the worst error over its bound and the case where it was. Returns 1
where one is above 1, or where an array of a golden was not computed.
"""

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from goldens_of_da3 import compute_da3
from goldens_of_mapanything import compute_mapanything

from vggt_jax.layers.attention import Dense, Rope
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.rope import rope_tables
from vggt_jax.models.loading import abstract_model, load_model, named_parameters, with_parameters
from vggt_jax.models.pi3x.config import Pi3XConfig
from vggt_jax.models.pi3x.model import Pi3X
from vggt_jax.models.pi3x.prompts import Prompts
from vggt_jax.scene.priors import Priors

Arrays = dict[str, np.ndarray]
FLOAT32: dict[str, Any] = {"compute_dtype": jnp.float32}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="the beginning of the names of toys; all by default")
    folder, only = (args := parser.parse_args(argv)).folder, args.model or ""
    # Programs run once, so that what takes longest is compiling.
    jax.config.update("jax_disable_most_optimizations", True)
    bounds = _bounds(folder)
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    missing = []
    for checkpoint in sorted(folder.glob("*.safetensors")):
        toy, name = checkpoint.stem, checkpoint.stem.partition("_")[0]
        cases = sorted(folder.glob(f"{toy}.*.npz"))
        if name not in _COMPUTE or not toy.startswith(only) or not cases:
            continue
        model = load_model(checkpoint)
        for path in cases:
            with np.load(path) as file:
                golden = {key: file[key] for key in file}
            case = path.stem.partition(".")[2]
            found = _COMPUTE[name](model, case, golden)
            for array, expected in golden.items():
                if name == "pi3x" and array in _INPUTS:
                    continue
                if array not in found:
                    missing.append(f"{path.stem}: {array}")
                    continue
                if array.endswith("_mask") and array not in bounds[name]:
                    error = _share_of_mask(found[array], expected) / _LARGEST_SHARE_OF_MASK
                else:
                    error = _error(found[array], expected) / bounds[name].get(array, _EXACT)
                before = worst.get((name, array), (-1.0, ""))
                worst[name, array] = max(before, (error, path.stem))
    for (name, array), (error, where) in sorted(worst.items()):
        print(f"{name:12} {array:24} {error:8.3f}  {where}")
    for line in missing:
        print(f"not computed: {line}")
    if not worst:
        print(f"{folder}: holds no cases of {', '.join(_COMPUTE)}", file=sys.stderr)
    return int(bool(missing) or not worst or any(not error <= 1 for error, _ in worst.values()))


_INPUTS = {"images", "intrinsics", "depths", "poses", "rays"}
_INPUTS |= {"mask_add_depth", "mask_add_ray", "mask_add_pose"}
_EXACT = 1e-30  # of arrays without a bound
_LARGEST_SHARE_OF_MASK = 1e-3  # of masks without one: thresholds that rounding crosses


def _bounds(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for path in folder.glob("noise_bounds*.json"):
        for model, arrays in json.loads(path.read_text()).items():
            of_model = {name: x["suggested_bound"] for name, x in arrays.items()}
            found.setdefault(model, {}).update(of_model)
    return found


def _error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over the root mean square of what is expected; infinite for NaN."""
    found, expected = (np.asarray(x, np.float64) for x in (found, expected))
    if found.shape != expected.shape:
        return np.inf
    difference = np.abs(found - expected).max()
    size = np.sqrt(np.square(expected).mean())
    return 0.0 if difference == 0 else float(difference / size) if size else np.inf


def _share_of_mask(found: np.ndarray, expected: np.ndarray) -> float:
    """Which share of its pixels is not as expected."""
    return float(np.mean((np.asarray(found) > 0.5) != (np.asarray(expected) > 0.5)))


def compute_pi3x(model: Pi3X, case: str, golden: Arrays) -> Arrays:
    """All arrays of a case of Pi3X under the names of its goldens."""
    images, priors = np.moveaxis(golden["images"], 2, -1), _priors_of_pi3x(golden)
    if case == "clamp":
        model = _with_far_points(model)
    found = jax.device_get(_run_pi3x(model, images, priors))
    if priors is not None and priors.camera_from_world is not None:
        shown = found["pose_mask"][..., None, None]
        for name in [name for name in golden if name.startswith("pose_inject_")]:
            # Of frames whose pose is not shown nothing is added, and nothing computed here.
            golden[name] = golden[name] * shown
            number = int(name.rpartition("_")[2])
            before = _with_injections(model, model.config.pose_inject_layers[: max(number, 1)])
            injected = _injected(model, before, images, priors, number)
            found[name] = jax.device_get(injected) * shown
    return found


def _priors_of_pi3x(golden: Arrays) -> Priors | None:
    given = {ours: golden[name] for ours, name in _NAMES.items() if name in golden}
    if "poses" in golden:
        poses = golden["poses"].astype(np.float64)
        given["camera_from_world"] = np.linalg.inv(poses).astype(np.float32)
    if not given:
        return None
    for ours, name in _MASKS.items():
        field = "camera_from_world" if ours == "poses" else ours
        if name in golden and field in given:
            given[f"{ours}_known"] = golden[name].astype(bool)
    return Priors(**given)


_NAMES = {"intrinsics": "intrinsics", "rays": "rays", "depth": "depths"}
_MASKS = {
    "intrinsics": "mask_add_ray",
    "rays": "mask_add_ray",
    "depth": "mask_add_depth",
    "poses": "mask_add_pose",
}


def _with_far_points(model: Pi3X) -> Pi3X:
    """The model of the case `clamp`, whose depth before the exponential is 4 z + 14.2."""
    parameters: dict[str, Any] = named_parameters(model)
    kernel, bias = (f"point_head.outputs.1.linear.{name}" for name in ("kernel", "bias"))
    parameters[kernel] = 4 * parameters[kernel]
    parameters[bias] = 4 * parameters[bias] + 14.2
    changed: Any = with_parameters(model, parameters)
    return changed


@jax.jit
def _run_pi3x(model: Pi3X, images: jax.Array, priors: Priors | None) -> dict[str, Any]:
    known: dict[str, Any] = {} if priors is None else {"priors": priors}
    output = model(images, **known, **FLOAT32)
    layout, dim = model.layout(images), model.config.decoder_dim
    tokens = model.encode(images, **known, **FLOAT32)
    trunk = model.aggregate(tokens, layout, taps=(0, 1), **known, **FLOAT32)
    found = {
        "patch_tokens": model.encode(images, **FLOAT32),
        "prompted_tokens": tokens,
        "block_0": trunk.tap(0)[..., :dim],
        "block_1": trunk.tap(0)[..., dim:],
        "block_2": trunk.tap(1)[..., :dim],
        "decoded": trunk.kept[:, :, -1],
        "metric_raw": jnp.log(output.metric),
    }
    if priors is not None:
        prompts = Prompts.of_priors(priors, images)
        options: Any = {"attention": Dense(), **FLOAT32}
        rays, depth = (f(prompts, **options) for f in (model.embed_rays, model.embed_depth))
        # Goldens of depth are without what is added to all of it.
        depth = None if depth is None else depth - model.depth_emb[...][None, None, None]
        found |= {"ray_tokens": rays, "depth_tokens": depth}
        found |= {"normalized_poses": prompts.poses, "pose_mask": prompts.poses_shown}
    precision, last = Precision.from_compute_dtype(jnp.float32), trunk.kept[:, :, -1]
    rope = lambda dim, heads: Rope(*rope_tables(layout.positions(), dim // heads))
    config = model.config
    of_frames = rope(config.head_dim, config.head_num_heads)
    for name in ("point", "camera", "conf"):
        decoder = getattr(model, f"{name}_decoder")
        found[f"{name}_tokens"] = decoder(last, of_frames, Dense(), precision)
    token = jnp.broadcast_to(model.metric_token[...], (len(images), *model.metric_token.shape))
    found["metric_tokens"] = model.metric_decoder(
        token,
        last,
        rope(config.metric_dim, config.metric_num_heads),
        num_frames=None,
        dense=Dense(),
        precision=precision,
    )
    tokens: Any = found["point_tokens"]
    raw = model.point_head(tokens[:, :, layout.num_special :], layout, precision)
    raw = jnp.moveaxis(raw, -1, 2)
    found |= {"xy_raw": raw[:, :, :2], "z_raw": raw[:, :, 2:]}
    names = ("points", "local_points", "rays", "conf", "camera_poses", "metric")
    found |= {f"out_{name}": getattr(output, name) for name in names}
    return {name: x for name, x in found.items() if x is not None}


@functools.partial(jax.jit, static_argnames="number")
def _injected(
    model: Pi3X, before: Pi3X, images: jax.Array, priors: Priors, number: int
) -> jax.Array:
    """What the block of this number adds to patches after its layer.

    Args:
        before: the model with the blocks before this one alone, or with any where it is the first.
    """
    layers = model.config.pose_inject_layers
    layout, layer = model.layout(images), layers[number] // 2
    tokens = model.encode(images, priors=priors, **FLOAT32)
    # The trunk up to there: what comes later does not show.
    known: dict[str, Any] = {"priors": priors} if number else {}
    trunk = before.aggregate(tokens, layout, taps=(layer,), **known, **FLOAT32)
    x = trunk.tap(layer)[..., model.config.decoder_dim :]
    prompts = Prompts.of_priors(priors, images)
    assert prompts.poses is not None and prompts.poses_shown is not None
    after = model.pose_injection(
        jnp.int32(number),
        x,
        prompts.poses,
        prompts.poses_shown,
        layout.positions(),
        num_special=layout.num_special,
        dense=Dense(),
        precision=Precision.from_compute_dtype(jnp.float32),
        frames_per_chunk=images.shape[1],
    )
    return (after - x)[:, :, layout.num_special :]


def _with_injections(model: Pi3X, layers: tuple[int, ...]) -> Pi3X:
    """The model with its first blocks that show poses alone."""
    config = Pi3XConfig.from_dict(model.config.to_dict() | {"pose_inject_layers": list(layers)})
    parameters: dict[str, Any] = {
        name: x[: len(layers)] if name.startswith("pose_injection.") else x
        for name, x in named_parameters(model).items()
    }
    changed: Any = with_parameters(abstract_model(config), parameters)
    return changed


_COMPUTE: dict[str, Callable[[Any, str, Arrays], Arrays]] = {
    "da3": compute_da3,
    "da3g": compute_da3,
    "mapanything": compute_mapanything,
    "pi3x": compute_pi3x,
}


if __name__ == "__main__":
    sys.exit(main())
