"""What is already known of a scene before it is reconstructed, for models that take it."""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.blocks import leading
from vggt_jax.errors import InputError
from vggt_jax.scene.reconstruction import AnyArray

PriorKind = Literal["intrinsics", "rays", "poses", "depth"]
"""What may be known of a frame; "poses" are `camera_from_world`."""

KINDS: tuple[PriorKind, ...] = get_args(PriorKind)

_FIELDS: dict[PriorKind, str] = {
    "intrinsics": "intrinsics",
    "rays": "rays",
    "poses": "camera_from_world",
    "depth": "depth",
}
# Rotations of files are rounded to five digits or more.
_ROTATION_TOLERANCE = 1e-3


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Priors:
    """What is already known of a scene: cameras and depth of all frames, or of some.

    Every field is optional, and so is every value of a frame: masks `*_known` say which frames have
    one that the model shall be shown. What stands in the place of another may be NaN. Arrays have
    the leading scene axis of the images, or none. Conventions are those of `Reconstruction`
    (docs/conventions.md).

    Attributes:
        intrinsics: in pixels of the model's frames, in continuous coordinates: the image spans
            [0, width] x [0, height], the centre of the first pixel lies at 0.5.
        rays: instead of intrinsics, for cameras that are no pinholes: in which direction each pixel
            looks from its own camera, z forward, of any length. Where both are known, these count.
        camera_from_world: OpenCV, x right, y down, z forward; [R | t], or with a last row
            (0, 0, 0, 1). The world may be any.
        depth: along the viewing axis (z, not along the ray), of the model's frames, in the unit of
            the positions of cameras; 0 or NaN where unknown.
        metric: whether these lengths are metres, of a scene as a whole; None: nobody said so, which
            means the same as False.
        intrinsics_known, rays_known, poses_known, depth_known: of which frames; None: of all, where
            there is the array.
    """

    intrinsics: Float[AnyArray, "*b s 3 3"] | None = None
    rays: Float[AnyArray, "*b s height width 3"] | None = None
    camera_from_world: Float[AnyArray, "*b s 3 4"] | Float[AnyArray, "*b s 4 4"] | None = None
    depth: Float[AnyArray, "*b s height width"] | None = None
    metric: Bool[AnyArray, "*b"] | bool | None = None
    intrinsics_known: Bool[AnyArray, "*b s"] | None = None
    rays_known: Bool[AnyArray, "*b s"] | None = None
    poses_known: Bool[AnyArray, "*b s"] | None = None
    depth_known: Bool[AnyArray, "*b s"] | None = None

    @property
    def given(self) -> tuple[PriorKind, ...]:
        """The kinds of which there are arrays."""
        return tuple(kind for kind in KINDS if self.values(kind) is not None)

    def values(self, kind: PriorKind) -> Any:
        """The array of a kind; None where there is none."""
        return getattr(self, _FIELDS[kind])

    def known(self, kind: PriorKind) -> Any:
        """Which frames have a value of a kind that is given: bool [*b s]."""
        mask, values = getattr(self, f"{kind}_known"), self.values(kind)
        if mask is not None:
            return mask
        xp = np if isinstance(values, np.ndarray) else jnp
        return xp.ones(values.shape[: values.ndim - _rank(kind)], bool)

    def fingerprint(self) -> str:
        """Tells priors apart: a hash of everything in them."""
        digest = hashlib.sha256()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None:
                array = np.asarray(jax.device_get(value))
                digest.update(f"{field.name} {array.dtype} {array.shape} ".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def only(self, kinds: Collection[PriorKind]) -> "Priors":
        """Without the kinds that are not named here."""
        others: list[PriorKind] = [kind for kind in KINDS if kind not in kinds]
        return dataclasses.replace(
            self, **{name: None for kind in others for name in (_FIELDS[kind], f"{kind}_known")}
        )

    def of_frames(self, frames: Sequence[int], *, padded_to: int | None = None) -> "Priors":
        """Some frames, in this order; NumPy arrays without scene axis, as `checked` returns them.

        Args:
            padded_to: how many frames there shall be: what is added is unknown.
        """
        padding = 0 if padded_to is None else padded_to - len(frames)
        filled = {}
        for kind in self.given:
            for name in (_FIELDS[kind], f"{kind}_known"):
                array = np.asarray(getattr(self, name))[list(frames)]
                empty = False if array.dtype == bool else np.nan
                pad = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
                filled[name] = np.pad(array, pad, constant_values=empty)
        return dataclasses.replace(self, **filled)

    def hide_padding(self, num_frames: Int[Array, " b"]) -> "Priors":
        """The same with nothing known of padded frames: a pure function.

        Args:
            num_frames: how many leading frames of each scene count.
        """
        fields: dict[str, Any] = {}
        for kind in self.given:
            known, values = self.known(kind), jnp.asarray(self.values(kind))
            counts = leading(num_frames, known.shape[-1])
            by_frame = jnp.expand_dims(counts, tuple(range(-_rank(kind), 0)))
            nan = jnp.asarray(jnp.nan, values.dtype)
            fields[_FIELDS[kind]] = jnp.where(by_frame, values, nan)
            fields[f"{kind}_known"] = counts & known
        return dataclasses.replace(self, **fields)

    def for_images(self, images: Any) -> "Priors":
        """The same with every mask written out, for models: a pure function.

        `camera_from_world` is [.. s 4 4] then, and the values of unknown frames are harmless: the
        identity, rays (0, 0, 1), and a depth of 0, as where depth is NaN.

        Args:
            images: [b s height width 3], for their shape.

        Raises:
            ValueError: a shape does not fit the images, or a mask has no array.
        """
        self._check_shapes(images.shape[:-1])
        fields: dict[str, Any] = {}
        for kind in self.given:
            known = jnp.asarray(self.known(kind))
            values = jnp.asarray(self.values(kind)).astype(jnp.float32)
            if kind == "poses" and values.shape[-2] == 3:
                values = _with_last_row(values)
            if kind == "depth":
                unknown = jnp.zeros(values.shape, jnp.float32)
                values = jnp.where(jnp.isfinite(values) & (values > 0), values, unknown)
            elif kind == "rays":
                unknown = jnp.broadcast_to(np.array([0, 0, 1], np.float32), values.shape)
            else:
                size = values.shape[-1]
                unknown = jnp.broadcast_to(np.eye(size, dtype=np.float32), values.shape)
            by_frame = jnp.expand_dims(known, tuple(range(-_rank(kind), 0)))
            fields[_FIELDS[kind]] = jnp.where(by_frame, values, unknown)
            fields[f"{kind}_known"] = known
        metric = jnp.asarray(False if self.metric is None else self.metric)
        fields["metric"] = jnp.broadcast_to(metric, images.shape[:-4])
        return dataclasses.replace(self, **fields)

    def checked(self, num_frames: int, size: tuple[int, int]) -> "Priors":
        """The priors of one scene in NumPy arrays of canonical form, or what is wrong with them.

        Args:
            num_frames, size: of the scene, (height, width).

        Returns:
            float32 arrays, `camera_from_world` as [s 4 4], depth 0 where unknown, every mask
            written out, and `metric` False where nobody said it. A frame whose depth is unknown in
            every pixel counts as unknown. Everything else of unknown frames is NaN.

        Raises:
            InputError: shapes do not fit; a mask has no array or no frame; a known value is no
                intrinsics, no rays or no pose; depth is of an integer type.
        """
        as_given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        arrays = Priors(
            **{
                name: None if x is None else np.asarray(jax.device_get(x))
                for name, x in as_given.items()
            }
        )
        try:
            arrays._check_shapes((num_frames, *size))
        except ValueError as error:
            raise InputError(str(error)) from error
        fields: dict[str, Any] = {}
        for kind in arrays.given:
            values, known = _CHECKS[kind](arrays.values(kind), arrays.known(kind))
            if not known.any():
                raise InputError(f"priors: {kind} of no frame are known; leave them out")
            fields[_FIELDS[kind]] = values.astype(np.float32)
            fields[f"{kind}_known"] = known
        metric = np.asarray(False if arrays.metric is None else arrays.metric)
        return dataclasses.replace(arrays, **fields, metric=metric.astype(bool))

    def _check_shapes(self, frames: tuple[int, ...]) -> None:
        """Compares all shapes with [.. s height width].

        Raises:
            ValueError: one does not fit.
        """
        leading = frames[:-2]
        wanted: dict[PriorKind, list[tuple[int, ...]]] = {
            "intrinsics": [(*leading, 3, 3)],
            "rays": [(*frames, 3)],
            "poses": [(*leading, 4, 4), (*leading, 3, 4)],
            "depth": [frames],
        }
        for kind, shapes in wanted.items():
            values, mask = self.values(kind), getattr(self, f"{kind}_known")
            name = _FIELDS[kind]
            if values is None:
                if mask is not None:
                    raise ValueError(f"priors: {kind}_known was given without {name}")
                continue
            if tuple(np.shape(values)) not in shapes:
                raise ValueError(
                    f"priors: {name} of shape {tuple(np.shape(values))} must be "
                    f"{' or '.join(map(str, shapes))} for these frames"
                )
            if mask is not None and (np.shape(mask) != leading or mask.dtype != bool):
                raise ValueError(
                    f"priors: {kind}_known must be bool of shape {leading}, not {mask.dtype} of "
                    f"{tuple(np.shape(mask))}"
                )
        metric: Any = False if self.metric is None else self.metric
        if np.shape(metric) not in ((), leading[:-1]):
            raise ValueError(
                f"priors: metric of shape {np.shape(metric)} must be one value, or one for "
                "each scene"
            )


def prior_bytes(kind: PriorKind, *, num_frames: int, pixels: int) -> int:
    """What the array of a kind takes on the device, in float32.

    Args:
        pixels: of a frame.
    """
    values = {"intrinsics": 9, "rays": 3 * pixels, "poses": 16, "depth": pixels}
    return 4 * values[kind] * num_frames


def _rank(kind: PriorKind) -> int:
    """How many axes the value of a frame has."""
    return 3 if kind == "rays" else 2


def _with_last_row(poses: Float[Array, "*b 3 4"]) -> Float[Array, "*b 4 4"]:
    last = jnp.broadcast_to(np.array([0, 0, 0, 1], np.float32), (*poses.shape[:-2], 1, 4))
    return jnp.concatenate([poses, last], axis=-2)


def _are_finite(values: np.ndarray) -> bool:
    """Whether all values are finite in float32, in which models take them."""
    with np.errstate(over="ignore"):
        return bool(np.isfinite(values.astype(np.float32)).all())


def _checked_intrinsics(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    of_known = values[known]
    focal = of_known[:, [0, 1], [0, 1]]
    if not _are_finite(of_known) or not (focal > 0).all():
        raise InputError(
            "priors: intrinsics must be finite with positive focal lengths [0, 0] and [1, 1]; "
            "say by intrinsics_known which frames have some"
        )
    if (of_known[:, 2] != (0, 0, 1)).any() or (of_known[:, 1, 0] != 0).any():
        raise InputError("priors: intrinsics must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]")
    return np.where(known[:, None, None], values, np.nan), known


def _checked_rays(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not _are_finite(values[known]) or not (values[known][..., 2] > 0).all():
        raise InputError(
            "priors: rays must be finite and look forward (z above 0); say by rays_known which "
            "frames have some"
        )
    return np.where(known[:, None, None, None], values, np.nan), known


def _checked_poses(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if values.shape[-2] == 3:
        last = np.broadcast_to(np.array([0, 0, 0, 1.0]), (len(values), 1, 4))
        values = np.concatenate([values, last], axis=1)
    of_known = values[known].astype(np.float64)
    if not _are_finite(of_known):
        raise InputError(
            "priors: camera_from_world must be finite; say by poses_known which frames have one"
        )
    rotation = of_known[:, :3, :3]
    error = np.abs(rotation @ rotation.swapaxes(1, 2) - np.eye(3)).max(initial=0)
    if error > _ROTATION_TOLERANCE or (np.linalg.det(rotation) < 0).any():
        raise InputError(
            "priors: the first three columns of camera_from_world must be a rotation: "
            f"orthogonal and right-handed, but R R^T is off by {error:.2g}"
        )
    if (of_known[:, 3] != (0, 0, 0, 1)).any():
        raise InputError("priors: the last row of camera_from_world must be (0, 0, 0, 1)")
    return np.where(known[:, None, None], values, np.nan), known


def _checked_depth(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not np.issubdtype(values.dtype, np.floating):
        raise InputError(
            f"priors: depth is {values.dtype.name}, whose unit is unknown; give floats in the unit "
            "of the positions of cameras"
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    is_known = known[:, None, None] & np.isfinite(values) & (values > 0)
    return np.where(is_known, values, 0), is_known.any((1, 2))


_CHECKS = {
    "intrinsics": _checked_intrinsics,
    "rays": _checked_rays,
    "poses": _checked_poses,
    "depth": _checked_depth,
}
