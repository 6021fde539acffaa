"""The heads of a model where the frames of a scene are divided over devices."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array

from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.shards import map_frames
from vggt_jax.models.base import SceneModel
from vggt_jax.trunk.alternation import TrunkOutput
from vggt_jax.trunk.frames import decoded_together
from vggt_jax.trunk.token_layout import TokenLayout


def decode_scene(
    mesh: Mesh | None,
    model: SceneModel,
    trunk: TrunkOutput,
    layout: TokenLayout,
    *,
    query_points: Array | None,
    num_frames: Array | None,
    **static: Any,
) -> dict[str, Any]:
    """`SceneModel.decode_scene`, done by every device of a mesh alike, with what it reads of the
    frames of all.

    Args:
        mesh: None for one device.
        static: `attention` and `compute_dtype`.
    """
    if mesh is None:
        arrays: Any = {"query_points": query_points, "num_frames": num_frames}
        return model.decode_scene(trunk, layout, **arrays, **static)

    def run(whole, _, shards):
        del shards
        model, trunk, query_points, num_frames = whole
        arrays = {"query_points": query_points, "num_frames": num_frames}
        return {}, model.decode_scene(trunk, layout, **arrays, **static)

    return map_frames(run, mesh, (model, trunk, query_points, num_frames), {})[1]


def decode_frames(
    mesh: Mesh | None,
    model: SceneModel,
    trunk: TrunkOutput,
    layout: TokenLayout,
    *,
    read: Mapping[str, Any],
    start: Array | None = None,
    num: int | None = None,
    **static: Any,
) -> dict[str, Any]:
    """`SceneModel.decode_frames`, done by each device of a mesh for its frames.

    Args:
        mesh: None for one device.
        read: outputs of `decode_scene` that it takes besides.
        start, num: of the frames of each device so many from there on; None for all.
        static: `attention` and `compute_dtype`.
    """

    def of_piece(trunk, start):
        if num is None:
            return trunk
        size = num
        return trunk.of_frames(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1))

    if mesh is None:
        return model.decode_frames(of_piece(trunk, start), layout, **read, **static)
    # What is of frames is divided, the rest is everywhere.
    of_frames, of_scene = trunk.parts()
    make: Any = functools.partial(TrunkOutput, layers=trunk.layers)

    def run(whole, of_frames, shards):
        model, of_scene, read, start = whole
        piece, of_scene = of_piece(make(**of_frames, **of_scene), start).parts()
        decode = lambda piece: model.decode_frames(
            make(**piece, **of_scene), layout, **read, **static
        )
        b, s = trunk.kept.shape[:2]
        pixels = b * layout.rows * layout.columns * model.config.patch_size**2
        together = decoded_together(pixels, shards.num) if model.num_dense_heads else s
        return map_chunks(decode, piece, axis=1, max_chunk=together), {}

    return map_frames(run, mesh, (model, of_scene, read, start), of_frames)[0]
