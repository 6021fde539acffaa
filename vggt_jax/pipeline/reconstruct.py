"""`reconstruct`: what a model's outputs say of scenes, as one pure function, and its programs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import CameraSource, SceneModel
from vggt_jax.models.registry import check_camera_source, check_divides_frames, check_priors
from vggt_jax.pipeline.placing import to_be_placed
from vggt_jax.scene.priors import Priors
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.trunk.attention.plan import attention_of


def reconstruct(
    model: SceneModel,
    images: Float[Array, "*b s height width 3"] | UInt8[Array, "*b s height width 3"],
    *,
    query_points: Float[Array, "*b m 2"] | None = None,
    attention: SceneAttention | str = Dense(),
    num_frames: Int[Array, "*b"] | None = None,
    compute_dtype: DTypeLike | None = None,
    priors: Priors | None = None,
    camera_source: CameraSource = "head",
    mesh: Mesh | None = None,
) -> Reconstruction:
    """Reconstructs scenes: a pure function, for `jax.jit`, `jax.grad` and pipelines.

    Args:
        model: as `load_model` returns it.
        images: frames of one scene, or of several of the same size with a leading scene axis; RGB,
            float in [0, 1] or uint8, sides multiples of the patch size.
        query_points: pixels `(x, y)` of the first frame to follow through all frames, by a model
            with a track head.
        attention, num_frames, compute_dtype: see the call of the model; `num_frames` has the scene
            axis if the images do, and `attention` may be "auto": a sample, of as many keys in all
            layers, where that is faster than dense.
        priors: what is already known, with the scene axis if the images have it; for a model that
            takes it.
        camera_source: where they come from, see `Options`.
        mesh: devices that divide the frames, see the call of the model.

    Raises:
        ValueError: shapes or types do not fit, or the model takes no such priors.
        InputError: devices cannot divide the frames of this model, or its cameras cannot come from
            there.
    """
    if images.ndim not in (4, 5):
        raise ValueError(
            "images must be [frame, height, width, 3] or [scene, frame, height, width, 3], "
            f"not {images.shape}"
        )
    one_scene = images.ndim == 4

    add_scene = lambda x: jnp.asarray(x)[None] if one_scene else jnp.asarray(x)
    known: dict[str, Any] = {}
    if priors is not None:
        check_priors(model, priors)
        known["priors"] = jax.tree.map(add_scene, priors)
    check_camera_source(model, camera_source)
    if camera_source != "head":
        known["camera_source"] = camera_source
    if mesh is not None:
        check_divides_frames(model)
        known["mesh"] = mesh
    output = model(
        add_scene(images),
        query_points=None if query_points is None else add_scene(query_points),
        attention=attention_of(attention),
        num_frames=None if num_frames is None else add_scene(num_frames),
        compute_dtype=compute_dtype,
        **known,
    )
    height, width = images.shape[-3:-1]
    fields = model.scene_fields(vars(output), (height, width))
    if one_scene:
        fields = jax.tree.map(lambda x: x[0], fields)
    return Reconstruction(
        images=images,
        confidence_kind=model.traits.confidence_kind,
        pixel_centre=model.pixel_centre,
        length_unit=model.traits.length_unit,
        best_points=next(iter(model.point_sources), None),
        **fields,
    )


reconstruct_jit = jax.jit(
    reconstruct, static_argnames=("attention", "compute_dtype", "camera_source", "mesh")
)
"""`reconstruct`, compiled once for all who call it with arrays of these shapes."""


def compile_reconstruct(
    model: SceneModel,
    inputs: dict[str, Any],
    *,
    attention: SceneAttention = Dense(),
    compute_dtype: DTypeLike | None = None,
    camera_source: CameraSource = "head",
    mesh: Mesh | None = None,
) -> jax.stages.Compiled:
    """`reconstruct`, compiled for these `model_inputs`; call it as `compiled(model, **inputs)`."""
    model, inputs = to_be_placed(mesh, model, inputs)
    return reconstruct_jit.lower(
        model,
        **inputs,
        attention=attention,
        compute_dtype=compute_dtype,
        camera_source=camera_source,
        mesh=mesh,
    ).compile()
