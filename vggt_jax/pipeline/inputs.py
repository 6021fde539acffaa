"""The first two steps of a reconstruction: the model, and photographs with what is known."""

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Float64

from vggt_jax import weights
from vggt_jax.errors import InputError
from vggt_jax.images.frames import Frames
from vggt_jax.images.loading import load_images
from vggt_jax.images.masks import background_mask, load_masks
from vggt_jax.images.resizing import DEFAULT_SIZE, PIXEL_BUDGET
from vggt_jax.layers.precision import Precision
from vggt_jax.models.base import ModelTraits, SceneModel
from vggt_jax.models.loading import load_model
from vggt_jax.models.registry import check_camera_source, check_priors
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.prior_files import read_priors
from vggt_jax.scene import calibration
from vggt_jax.scene.priors import PriorKind, Priors


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneInputs:
    """What a scene is reconstructed from, validated.

    Attributes:
        frames: in the order given.
        reference: the index of the reference frame, which the model sees first.
        query_points: in pixels of the reference frame.
        mask: which pixels may be used; None for all.
        intrinsics: known ones, in pixels of the photographs.
        priors: what the model is told, as `Priors.checked` gives it.
        keeps_given_cameras: see `ModelTraits`.
    """

    frames: Frames
    reference: int
    query_points: Float[np.ndarray, "m 2"] | None
    mask: Bool[np.ndarray, "s height width"] | None
    intrinsics: Float64[np.ndarray, "s 3 3"] | None
    priors: Priors | None = None
    keeps_given_cameras: bool = False

    @property
    def known(self) -> tuple[PriorKind, ...]:
        """The kinds of priors that the model is told."""
        return () if self.priors is None else self.priors.given

    @property
    def order(self) -> list[int]:
        """The frames in the order in which the model sees them."""
        others = (i for i in range(len(self.frames.images)) if i != self.reference)
        return [self.reference, *others]

    @property
    def ordered_images(self) -> np.ndarray:
        """The images [s height width 3] in that order; no copy where it is the photographs' own."""
        images = self.frames.images
        return images if self.reference == 0 else images[self.order]


def load(options: Options) -> SceneModel:
    """The model that the options name: one at hand, one to load, or, for None, the small one.

    One that is loaded keeps the kernels of its products in the type that they are computed in:
    products in bfloat16 round their operands anyway.

    Raises:
        vggt_jax.CheckpointError: it cannot be loaded.
    """
    if options.model is not None and not isinstance(options.model, str | os.PathLike):
        return options.model
    computed_in = Precision.from_compute_dtype(options.compute_dtype).compute_dtype
    dtype = jnp.bfloat16 if computed_in == jnp.bfloat16 else None
    if options.model is None:
        return _small_model(dtype)
    return load_model(options.model, config=options.config, dtype=dtype)


@functools.cache
def _small_model(dtype) -> SceneModel:
    say_that_it_is_small()
    return load_model(dtype=dtype)


def say_that_it_is_small() -> None:
    """Tells somebody who named no model which one is used."""
    print(f"vggt_jax: {weights.SAID_WITHOUT_MODEL}", file=sys.stderr)  # noqa: T201


def read(images: Any, model: SceneModel, options: Options) -> SceneInputs:
    """Reads photographs in the sizes of a model, with masks and what is known of their cameras.

    Raises:
        InputError: photographs, or options for them, cannot be used with this model.
    """
    check_model(model, options)
    frames = read_frames(images, model, options)
    inputs = of_frames(frames, options)
    if inputs.reference != 0 and not model.traits.has_reference_frame:
        raise InputError(f"reference={options.reference!r}: {why_no_reference(model.traits)}")
    if inputs.query_points is not None:
        check_tracking(model, frames.images.shape[1:3])
    if options.priors is None:
        return inputs
    priors = _priors(frames, model, options)
    model.check_known(priors, first=inputs.reference)
    return dataclasses.replace(
        inputs, priors=priors, keeps_given_cameras=model.traits.keeps_given_cameras
    )


def why_no_reference(traits: ModelTraits) -> str:
    """Why `reference` cannot be chosen for a model without a reference frame."""
    if traits.chooses_reference:
        return (
            f"{traits.title} chooses its reference frame itself, of three frames and more whose "
            "poses are not known, and else it is the first; leave it out, or put that one first"
        )
    unless = " where no poses are known" if "poses" in traits.takes else ""
    return (
        f"{traits.title} has no reference frame, and its result does not depend on the order"
        f"{unless}; leave it out"
    )


def _priors(frames: Frames, model: SceneModel, options: Options) -> Priors:
    """What the model is told of these frames."""
    given = options.priors
    if isinstance(given, str | os.PathLike):
        given = read_priors(given, frames, use=options.use)
    assert given is not None
    if options.use:
        if missing := [kind for kind in options.use if kind not in given.given]:
            raise InputError(f"use={missing[0]!r}: priors hold no {missing[0]}; leave it out")
        given = given.only(options.use)
    if options.metric:
        given = dataclasses.replace(given, metric=True)
    if not given.given:
        raise InputError("priors are empty; leave them out")
    check_priors(model, given)
    return given.checked(len(frames.images), frames.images.shape[1:3])


def check_model(model: SceneModel, options: Options) -> None:
    """Finds options that ask for what a model does not predict, or layers that it lacks.

    Raises:
        InputError: there is one.
    """
    try:
        options.scene_attention.of_layers(model.num_layers)
    except ValueError as error:
        raise InputError(str(error)) from error
    check_camera_source(model, options.camera_source)
    for name, needed in (
        ("known_distance", "cameras"),
        ("known_depth", "depth"),
        ("mask_edges", "depth"),
        ("multiview_confidence", "depth"),
        ("multiview_confidence", "cameras"),
    ):
        if getattr(options, name) and needed not in model.predicts:
            raise InputError(f"this model predicts no {needed} for {name}; leave it out")


def read_frames(images: Any, model: SceneModel, options: Options) -> Frames:
    """Photographs in the sizes of a model, see `load_images`."""
    return load_images(
        images,
        **read_settings(images, model, options),
        fps=options.fps,
        frames=options.frames,
        pattern=options.pattern,
        recursive=options.recursive,
        stretch=options.stretch,
        progress=options.progress,
    )


def read_settings(images: Any, model: SceneModel, options: Options) -> dict[str, Any]:
    """What of `load_images` is due to a model: `mode`, `default_mode`, `size` and `patch_size`."""
    size, own_mode = options.size, model.resize_mode
    if size is None and not hasattr(images, "ndim"):  # One array keeps the size that it has.
        size = model.config.img_size
        mode = options.mode or own_mode
        if (mode == "budget" and size**2 > PIXEL_BUDGET) or (
            mode in ("cover", "longest") and size == DEFAULT_SIZE
        ):
            size = None
    return {
        "mode": options.mode,
        "default_mode": own_mode,
        "size": size,
        "patch_size": model.config.patch_size,
    }


def of_frames(frames: Frames, options: Options) -> SceneInputs:
    """Frames with what the options say of them, whatever the model.

    Raises:
        InputError: masks, cameras or pixels do not fit the photographs.
    """
    reference = calibration.frame_index(frames.names, len(frames.images), options.reference)
    _check_lengths(frames, options)
    return SceneInputs(
        frames=frames,
        reference=reference,
        query_points=_query_points(frames, reference, options),
        mask=_usable_pixels(frames, options),
        intrinsics=_known_intrinsics(frames, options),
    )


def check_tracking(model: SceneModel, size: tuple[int, int]) -> None:
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


def _usable_pixels(frames: Frames, options: Options) -> np.ndarray | None:
    if options.masks is None and not options.background and frames.opaque is None:
        return None
    mask = frames.valid_mask() if options.masks is None else load_masks(options.masks, frames)
    mask &= background_mask(frames.images, options.background)
    if frames.opaque is not None:
        mask &= frames.opaque
    if not mask.any():
        raise InputError(
            "masks, background and transparency leave no pixel of any photograph; change them"
        )
    return mask


def _known_intrinsics(frames: Frames, options: Options) -> np.ndarray | None:
    known = options.intrinsics
    if options.focal is not None:
        sizes = [transform.original_size for transform in frames.transforms]
        if not sizes:
            sizes = [frames.images.shape[1:3]] * len(frames.images)
        known = np.stack([calibration.pinhole(options.focal, (x / 2, y / 2)) for y, x in sizes])
    elif isinstance(known, str | os.PathLike):
        known = calibration.read_intrinsics(known, frames.names)
    return None if known is None else calibration.checked_intrinsics(known, len(frames.images))


def _check_lengths(frames: Frames, options: Options) -> None:
    """Checks that the photographs of a known length exist, before the long work."""
    if options.known_distance is not None:
        *cameras, _ = options.known_distance
        first, second = (
            calibration.frame_index(frames.names, len(frames.images), camera) for camera in cameras
        )
        if first == second:
            raise InputError(
                f"known_distance={options.known_distance}: names photograph {first} twice; choose "
                "others"
            )
    if options.known_depth is not None:
        photograph, x, y, _ = options.known_depth
        calibration.nearest_pixel(frames, (photograph, x, y))


def _query_points(frames: Frames, reference: int, options: Options) -> np.ndarray | None:
    if options.query_pixels is not None:
        transform, name = frames.transforms[reference], frames.names[reference]
        height, width = transform.original_size
        pixels = _checked_points(options.query_pixels, (height, width), f"{name}, which")
        return np.asarray(transform.pixels_to_model(pixels), np.float32)
    if options.query_points is None:
        return None
    size = frames.images.shape[1:3]
    return _checked_points(options.query_points, size, "the first frame, which")


def _checked_points(
    points: ArrayLike | Sequence, size: tuple[int, int], where: str
) -> Float[np.ndarray, "m 2"]:
    points = np.asarray(points, np.float32)
    height, width = size
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise InputError(f"query points must be [m 2], pixels (x, y), not {points.shape}")
    # Integers are pixel centres: the image reaches half a pixel beyond the first and the last.
    inside = (points >= -0.5).all(1) & (points <= (width - 0.5, height - 0.5)).all(1)
    if not inside.all():
        x, y = points[~inside][0]
        raise InputError(
            f"query point ({x:g}, {y:g}) lies outside {where} is {width} wide and {height} high; "
            f"{(~inside).sum()} of {len(points)} points do"
        )
    return points
