"""From images to a reconstruction."""

import dataclasses
import functools
import os
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vggt_jax import geometry, weights
from vggt_jax.errors import InputError
from vggt_jax.host import with_numpy
from vggt_jax.images.frames import Frames
from vggt_jax.images.loading import load_images
from vggt_jax.images.masks import Background, background_mask, load_masks
from vggt_jax.images.resizing import PIXEL_BUDGET, Mode
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.loading import Model, load_model
from vggt_jax.pipeline.streaming import Stream, is_streamed
from vggt_jax.scene.calibration import checked_intrinsics, frame_index, with_intrinsics
from vggt_jax.scene.masking import with_mask
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.trunk.token_layout import TokenLayout


def reconstruct(
    model: Model,
    images: Float[Array, "*b s height width 3"] | UInt8[Array, "*b s height width 3"],
    *,
    query_points: Float[Array, "*b m 2"] | None = None,
    attention: SceneAttention = Dense(),
    num_frames: Int[Array, "*b"] | None = None,
    compute_dtype: DTypeLike | None = None,
) -> Reconstruction:
    """Reconstructs scenes: a pure function, for `jax.jit`, `jax.grad` and pipelines.

    Args:
        model: as `load_model` returns it.
        images: frames of one scene, or of several of the same size with a leading scene axis; RGB,
            float in [0, 1] or uint8, sides multiples of the patch size.
        query_points: pixels `(x, y)` of the first frame to follow through all frames, by a model
            with a track head.
        attention, num_frames, compute_dtype: see the call of the model; `num_frames` has the scene
            axis if the images do.

    Raises:
        ValueError: shapes or types do not fit.
    """
    if images.ndim not in (4, 5):
        raise ValueError(
            "images must be [frame, height, width, 3] or [scene, frame, height, width, 3], "
            f"not {images.shape}"
        )
    one_scene = images.ndim == 4

    add_scene = lambda x: jnp.asarray(x)[None] if one_scene else jnp.asarray(x)
    output = model(
        add_scene(images),
        query_points=None if query_points is None else add_scene(query_points),
        attention=attention,
        num_frames=None if num_frames is None else add_scene(num_frames),
        compute_dtype=compute_dtype,
    )
    height, width = images.shape[-3:-1]
    fields = model.scene_fields(vars(output), (height, width))
    if one_scene:
        fields = jax.tree.map(lambda x: x[0], fields)
    return Reconstruction(
        images=images,
        confidence_kind=model.traits.confidence_kind,
        pixel_centre=model.pixel_centre,
        **fields,
    )


_reconstruct = jax.jit(reconstruct, static_argnames=("attention", "compute_dtype"))


def infer(
    images: Any,
    *,
    model: Model | str | os.PathLike | None = None,
    query_points: ArrayLike | None = None,
    attention: SceneAttention = Dense(),
    mode: Mode | None = None,
    size: int | tuple[int, int] | None = None,
    fps: float | None = None,
    frames: int | None = None,
    reference: int | str = 0,
    intrinsics: ArrayLike | None = None,
    masks: Any = None,
    background: Collection[Background] = (),
    mask_edges: bool = False,
    compute_dtype: DTypeLike | None = None,
    pad_frames: bool = True,
    progress: bool = False,
) -> Reconstruction:
    """Reconstructs the scene that photographs show.

    Args:
        images: a folder, a list of paths, PIL images or arrays; a video; or one array
            [s height width 3]. See `load_images`.
        model: a model, or what `load_model` takes; load it once if you call this often. None is the
            small model that ships with the package, and is said once.
        query_points: [m 2] pixels `(x, y)` of the first frame (with `reference`: of that one),
            after resizing, to follow through all frames; `Frames.transforms` lead there from a
            photograph.
        attention: how the tokens of all frames attend to each other: `Dense()`, or `Sampled(...)`
            or `BlockSparse(...)` for many photographs; with few tokens it warns and is dense (their
            `min_tokens`).
        mode, size: how photographs are resized, see `load_images`. None is the model's own: "crop"
            to 112 for the small model and to 518 for VGGT-1B, "budget" of 255,000 pixels for π³,
            where photographs of different shapes ask for an explicit mode.
        fps, frames: of a video, how many frames to take in a second or in all; see
            `video.choose_frames`.
        reference: the frame whose camera is the world, by index or name. The model sees it first
            and the others in their order; results are in the order given. For VGGT only: π³ has
            none.
        intrinsics: known ones, [3 3] or [s 3 3] in the pixels of the photographs, in place of the
            predicted ones; see `calibration.with_intrinsics`.
        masks: which pixels may be used, such as a folder of masks; see `masks.load_masks`.
        background: what to leave out by its colour: "white", "black", "sky"; see
            `masks.background_mask`.
        mask_edges: whether to mark `depth_edges` for VGGT, too; those of π³ are always marked.
        compute_dtype: of matrix products; None is bfloat16 on a GPU and float32 elsewhere.
        pad_frames: whether to pad the frames to one of few numbers, at most a sixteenth more, so
            that scenes of similar length share a compiled program. Padding changes no result.
        progress: whether to show progress bars, of photographs that are read, and of frames that
            are done if there are many (64 of 518x518).

    Returns:
        The reconstruction, in NumPy arrays without scene axis.

    Raises:
        InputError: photographs cannot be used, or a query point lies outside the first frame.
        vggt_jax.CheckpointError: the model cannot be loaded.
    """
    model = model_of(model)
    photographs = read_frames(
        images, model=model, mode=mode, size=size, fps=fps, frames=frames, progress=progress
    )
    first = reference_index(reference, photographs, model)
    mask = usable_mask(photographs, masks, background)
    if intrinsics is not None:
        intrinsics = checked_intrinsics(intrinsics, len(photographs.images))
    ordered = with_first(photographs, first)
    inputs = model_inputs(ordered, model=model, query_points=query_points, pad_frames=pad_frames)
    attention = attention_for(attention, model, photographs)
    run = runner(model, inputs, attention=attention, compute_dtype=compute_dtype)
    with tqdm.tqdm(
        total=len(photographs.images),
        desc="frames",
        unit="frame",
        disable=not (progress and isinstance(run, Stream)),
    ) as bar:
        result = run(model, **inputs, done=lambda num: bar.update(num - bar.n))
    recon = cut_to_frames(result, photographs, first=first)
    return with_known(recon, intrinsics=intrinsics, mask=mask, mask_edges=mask_edges)


def attention_for(
    attention: SceneAttention,
    model: Model,
    frames: Frames,
    *,
    say: Callable[[str], None] = warnings.warn,
) -> SceneAttention:
    """The attention that a scene really gets: dense where it is too small for another.

    Decided before frames are padded, so that padding changes no result.

    Args:
        say: takes the message that a scene runs dense although another attention was asked for.

    Raises:
        InputError: the model has other layers than `attention` speaks of.
    """
    check_layers(attention, model)
    num_frames, height, width, _ = frames.images.shape
    config = model.config
    special = config.num_special_tokens
    layout = TokenLayout.for_images(height, width, config.patch_size, special)
    why_dense = attention.why_dense(
        num_tokens=num_frames * layout.tokens_per_frame,
        num_patches=num_frames * layout.rows * layout.columns,
    )
    if why_dense is not None:
        say(f"{num_frames} frames have {why_dense}")
        return attention.within_frames
    return attention.decided()


def check_layers(attention: SceneAttention, model: Model) -> None:
    """Checks that a model has the layers that `attention` speaks of.

    Raises:
        InputError: it has others.
    """
    try:
        attention.of_layers(model.num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error


def model_of(source: Model | str | os.PathLike | None) -> Model:
    """The model that a caller means: one at hand, one to load, or, for None, the small one."""
    if source is None:
        return _small_model()
    return load_model(source) if isinstance(source, str | os.PathLike) else source


@functools.cache
def _small_model() -> Model:
    print(f"vggt_jax: {weights.SAID_WITHOUT_MODEL}", file=sys.stderr)  # noqa: T201
    return load_model()


def read_frames(
    images: Any,
    *,
    model: Model,
    mode: Mode | None = None,
    size: int | tuple[int, int] | None = None,
    fps: float | None = None,
    frames: int | None = None,
    progress: bool = False,
) -> Frames:
    """The first step of `infer`: frames in the sizes of this model."""
    config = model.config
    own_mode = model.traits.resize_mode
    if size is None and not hasattr(images, "ndim"):  # One array keeps the size that it has.
        size = config.img_size
        if (mode or own_mode) == "budget" and size**2 > PIXEL_BUDGET:
            size = None
    return load_images(
        images,
        mode=mode,
        default_mode=own_mode,
        size=size,
        patch_size=config.patch_size,
        fps=fps,
        frames=frames,
        progress=progress,
    )


def model_inputs(
    frames: Frames,
    *,
    model: Model,
    query_points: ArrayLike | None = None,
    pad_frames: bool = True,
) -> dict[str, Any]:
    """The second step of `infer`: the arguments of `reconstruct`.

    Raises:
        InputError: a query point lies outside the first frame or is not a number, or the frames
            are too small for the tracker.
    """
    images = frames.images
    num_frames = len(images)
    padded = bucket(num_frames) if pad_frames else num_frames
    inputs: dict[str, Any] = {"images": images}
    if padded > num_frames:
        inputs["images"] = np.pad(images, ((0, padded - num_frames), (0, 0), (0, 0), (0, 0)))
    if padded > num_frames or (pad_frames and is_shared(padded)):
        inputs["num_frames"] = np.int32(num_frames)
    if query_points is not None:
        inputs["query_points"] = _checked_query_points(query_points, images.shape[1:3])
        check_tracking(model, images.shape[1:3])
    return inputs


def compile_reconstruct(
    model: Model,
    inputs: dict[str, Any],
    *,
    attention: SceneAttention = Dense(),
    compute_dtype: DTypeLike | None = None,
) -> jax.stages.Compiled:
    """`reconstruct`, compiled for these `model_inputs`; call it as `compiled(model, **inputs)`."""
    return _reconstruct.lower(
        model, **inputs, attention=attention, compute_dtype=compute_dtype
    ).compile()


def runner(
    model: Model,
    inputs: dict[str, Any],
    *,
    attention: SceneAttention = Dense(),
    compute_dtype: DTypeLike | None = None,
    compiled: bool = False,
) -> Callable[..., Reconstruction]:
    """What reconstructs these `model_inputs`: `run(model, **inputs, done=...)`.

    Scenes of many pixels are streamed (`streaming.is_streamed`); the others run as one program.
    `done` is called with the number of frames that are done.

    Args:
        compiled: whether to compile now; otherwise the first call does, unless one like it has.
    """
    options = {"attention": attention, "compute_dtype": compute_dtype}
    if is_streamed(*inputs["images"].shape[:3]):
        return Stream.of(model, inputs, **options, compiled=compiled)
    if compiled:
        whole = compile_reconstruct(model, inputs, **options)
    else:
        whole = functools.partial(_reconstruct, **options)

    def run(model, *, done=lambda num: None, **inputs):
        result = jax.block_until_ready(whole(model, **jax.device_put(inputs)))
        done(int(inputs.get("num_frames", len(inputs["images"]))))
        return result

    return run


def reference_index(reference: int | str, frames: Frames, model: Model) -> int:
    """The index of the reference frame.

    Raises:
        InputError: there is no such frame, or the model has no reference frame.
    """
    index = frame_index(frames.names, len(frames.images), reference)
    if index != 0 and not model.traits.has_reference_frame:
        raise InputError(
            f"{reference=}: {model.traits.title} has no reference frame, and its result does not "
            "depend on the order; leave it out"
        )
    return index


def usable_mask(
    frames: Frames, masks: Any, background: Collection[Background]
) -> np.ndarray | None:
    """Which pixels may be used, bool [s height width]; None if nothing is masked.

    Raises:
        InputError: masks do not fit the photographs.
    """
    if masks is None and not background:
        return None
    mask = frames.valid_mask() if masks is None else load_masks(masks, frames)
    mask &= background_mask(frames.images, background)
    if not mask.any():
        raise InputError("masks and background leave no pixel of any photograph; change them")
    return mask


def with_first(frames: Frames, first: int) -> Frames:
    """The frames with one of them moved to the front."""
    if first == 0:
        return frames
    order = _order(len(frames.images), first)
    return Frames(
        images=frames.images[order],
        names=tuple(frames.names[i] for i in order),
        transforms=tuple(frames.transforms[i] for i in order),
    )


def _order(num_frames: int, first: int) -> list[int]:
    return [first, *(i for i in range(num_frames) if i != first)]


def cut_to_frames(result: Reconstruction, frames: Frames, *, first: int = 0) -> Reconstruction:
    """NumPy arrays of the valid frames in their own order, with names and transforms.

    Args:
        result: of `frames`, or of `with_first(frames, first)`, perhaps padded. Its NumPy arrays are
            not copied where the order stays.
        frames: in their own order.
        first: as for `with_first`.
    """
    num_frames = len(frames.images)
    places = np.argsort(_order(num_frames, first))
    stats = jax.tree.map(np.array, jax.device_get(result.attention_stats))
    per_frame = dataclasses.replace(result, attention_stats=None, images=None)

    def own(x):
        valid = jax.device_get(x)[:num_frames]
        if first != 0:
            return valid[places]
        return valid if isinstance(x, np.ndarray) else np.array(valid)

    per_frame = jax.tree.map(own, per_frame)
    return dataclasses.replace(
        per_frame,
        images=frames.images,
        names=frames.names,
        transforms=frames.transforms,
        attention_stats=stats,
    )


def with_known(
    recon: Reconstruction,
    *,
    intrinsics: ArrayLike | None = None,
    mask: np.ndarray | None = None,
    mask_edges: bool = False,
) -> Reconstruction:
    """The last step of `infer`: known intrinsics, masks and edges of depth put into the result.

    Raises:
        InputError: the intrinsics are none, or the model predicts no depth to have edges.
    """
    if intrinsics is not None:
        recon = with_intrinsics(recon, intrinsics)
    if mask is not None:
        recon = with_mask(recon, mask)
    if mask_edges and recon.depth_edges is None:
        if recon.depth is None:
            raise InputError(f"{mask_edges=}: this model predicts no depth; leave it out")
        edges = with_numpy(geometry.depth_edges, recon.depth)
        recon = dataclasses.replace(recon, depth_edges=np.array(edges))
    return recon


def bucket(num_frames: int) -> int:
    """The number of frames that `infer` pads to: sixteen steps to each doubling.

    Up to 32 frames nothing is padded; 33 become 34, 99 become 100, 1000 become 1024.
    """
    step = 2 ** max(0, num_frames.bit_length() - 5)
    return -(-num_frames // step) * step


def is_shared(padded: int) -> bool:
    """Whether several numbers of frames are padded to this `bucket`, whose program masks frames."""
    return bucket(padded - 1) == padded


def check_tracking(model: Model, size: tuple[int, int]) -> None:
    """Checks that a model can track points through frames of this (height, width).

    Raises:
        InputError: the model has no track head, or the frames are too small for it.
    """
    smallest = model.smallest_tracked_side
    if smallest is None:
        raise InputError("this model has no track head; leave out the query points")
    if min(size) < smallest:
        height, width = size
        raise InputError(
            f"frames of {width}x{height} are too small to track points in, whose sides must be at "
            f"least {smallest}; choose a larger size"
        )


def _checked_query_points(points: ArrayLike | Sequence, size: tuple[int, int]) -> np.ndarray:
    points = np.asarray(points, np.float32)
    height, width = size
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise InputError(f"query points must be [m 2], pixels (x, y), not {points.shape}")
    # Integers are pixel centres: the image reaches half a pixel beyond the first and the last.
    inside = (points >= -0.5).all(1) & (points <= (width - 0.5, height - 0.5)).all(1)
    if not inside.all():
        first = points[~inside][0]
        raise InputError(
            f"query point ({first[0]:g}, {first[1]:g}) lies outside the first frame, which is "
            f"{width} wide and {height} high; {(~inside).sum()} of {len(points)} points do"
        )
    return points
