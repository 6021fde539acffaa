"""A model as StableHLO: a program of fixed shapes that runs wherever JAX is, without vggt-jax.

    from jax import export
    import jax, numpy as np

    program = export.deserialize(open("out/program.stablehlo", "rb").read())
    weights = jax.device_put(dict(np.load("out/weights.npz")))
    result = jax.jit(program.call)(weights, images)      # images uint8 [s height width 3]
    result["depth"], result["camera_from_world"]         # as in `Reconstruction`

Weights are an argument of the program and lie beside it, so that one file of weights serves
programs of several shapes, and a program of a large model stays small. Both processes need
flatbuffers, by which `jax.export` writes and reads (`pip install jax flatbuffers`).
"""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import output_folder
from vggt_jax.layers.attention import Dense
from vggt_jax.models.base import SceneModel
from vggt_jax.models.loading import named_parameters
from vggt_jax.pipeline.reconstruct import reconstruct

Platform = Literal["cpu", "cuda"]
PROGRAM, WEIGHTS, SIGNATURE = "program.stablehlo", "weights.npz", "signature.json"


def export_stablehlo(
    model: SceneModel,
    out: str | os.PathLike,
    *,
    num_frames: int,
    size: tuple[int, int],
    platforms: Sequence[Platform] = ("cpu", "cuda"),
    compute_dtype: Literal["float32", "bfloat16"] = "float32",
    overwrite: bool = False,
) -> None:
    """Writes a model as a StableHLO program for scenes of one shape, with its weights beside it.

    The program attends densely, in plain XLA operations on every platform, and tracks no points. It
    is what `jax.export` makes: later versions of JAX read it for as long as its promise of
    compatibility holds (half a year), or `jax.export` writes it as text
    (`deserialize(...).mlir_module()`).

    Args:
        model: as `load_model` returns it.
        out: folder to make, with `program.stablehlo` (what `jax.export.deserialize` reads),
            `weights.npz` (float32 arrays by the names of our checkpoints, the first argument) and
            `signature.json` (shapes and types of arguments and results).
        num_frames: frames of a scene.
        size: their (height, width), multiples of the patch size.
        platforms: where the program shall run.
        compute_dtype: of matrix products, for all platforms.
        overwrite: replace the files of an earlier export.

    Raises:
        InputError: a size or platform cannot be used, the folder cannot be written, or flatbuffers
            is not installed.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "jax.export writes programs by flatbuffers, which is not installed; "
            "pip install 'vggt-jax[stablehlo]'"
        )
    patch = model.config.patch_size
    if num_frames < 1:
        raise InputError(f"{num_frames=} must be at least 1")
    if len(size) != 2 or any(side < patch or side % patch for side in size):
        raise InputError(f"{size=} must be (height, width), positive multiples of {patch}")
    known = get_args(Platform)
    if not platforms or set(platforms) - set(known):
        raise InputError(f"{platforms=} must be some of {', '.join(known)}")
    if compute_dtype not in ("float32", "bfloat16"):
        raise InputError(f"{compute_dtype=} must be float32 or bfloat16")
    # In the order of the leaves of the model.
    parameters, structure = named_parameters(model), jax.tree.structure(model)
    with output_folder(
        Path(out), overwrite=overwrite, entries=(PROGRAM, WEIGHTS, SIGNATURE)
    ) as folder:
        images = jax.ShapeDtypeStruct((num_frames, *size, 3), np.uint8)
        arguments = {
            name: jax.ShapeDtypeStruct(x.shape, np.float32) for name, x in parameters.items()
        }

        def program(weights, images):
            stored = [weights[name].astype(leaf.dtype) for name, leaf in parameters.items()]
            result = reconstruct(
                jax.tree.unflatten(structure, stored),
                images,
                attention=Dense(implementation="xla"),
                compute_dtype=compute_dtype,
            )
            return {name: getattr(result, name) for name in _predicted(result)}

        exported = jax.export.export(jax.jit(program), platforms=tuple(platforms))(
            arguments, images
        )
        (folder / PROGRAM).write_bytes(exported.serialize())
        stored = {name: _as_float32(x) for name, x in parameters.items()}
        # No name is that of a parameter of numpy.savez.
        np.savez(folder / WEIGHTS, **stored)  # pyright: ignore[reportArgumentType]
        results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        signature = {
            "images": {"shape": list(images.shape), "dtype": "uint8"},
            "results": {
                name: {"shape": list(x.shape), "dtype": x.dtype.name} for name, x in results.items()
            },
            "platforms": list(exported.platforms),
            "compute_dtype": compute_dtype,
            "jax": jax.__version__,
        }
        (folder / SIGNATURE).write_text(json.dumps(signature, indent=1) + "\n")


def _predicted(result) -> list[str]:
    """The fields of a reconstruction that were predicted: the frames themselves are known."""
    found = (field.name for field in dataclasses.fields(result) if field.name != "images")
    return [name for name in found if isinstance(getattr(result, name), jax.Array)]


def _as_float32(array: jax.Array) -> np.ndarray:
    return jax.device_get(array.astype(jnp.float32))
