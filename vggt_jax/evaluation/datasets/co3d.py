"""CO3Dv2: turns around objects of 51 categories, with cameras and depth by COLMAP.

Cameras have PyTorch3D's axes (x left, y up) and turn rows of points; focal lengths and principal
points are in normalized device coordinates of one of two kinds. Depth is float16 in the 16 bits of
a PNG. A frame's number is not that in the name of its file. Masks are those of the object.

Sequences of a low viewpoint quality, and those with a camera far away, are left out, as in the
evaluations of VGGT and π³.
"""

import functools
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import (
    About,
    DataSet,
    Frame,
    Layout,
    Problems,
    Scan,
    Sequence,
)
from vggt_jax.evaluation.datasets.reading import (
    NO_DEPTH,
    NO_MASK,
    by_stem,
    finite_depth,
    first_file,
    naming,
    pinhole,
    read_mask,
    read_ply,
    read_rgb,
    read_uint16,
    rigid,
    subfolders,
    usable_size,
)

# VGGT's evaluation leaves out a sequence if x + y + z of any of its translations is above.
MOST_TRANSLATION = 1e5
LOW_QUALITY = "viewpoint quality is too low"
FAR_CAMERA = "a camera is far away (x + y + z above 1e5)"
NO_CAMERA = "camera cannot be read"
_FLIP = np.array([-1.0, -1.0, 1.0])  # Between PyTorch3D's axes and OpenCV's.
_LISTS = ("fewview_train", "fewview_dev", "fewview_test", "manyview_dev", "manyview_test")


def _jgz(path: Path) -> Any:
    """A gzip of JSON."""
    try:
        with naming(path, "gzip of JSON"), gzip.open(path, "rb") as file:
            return json.loads(file.read())
    except (zlib.error, RecursionError) as error:
        raise InputError(f"{path}: is no gzip of JSON ({error})") from error


def _is_category(folder: Path) -> bool:
    return (folder / "frame_annotations.jgz").is_file()


def _categories(root: Path) -> list[Path]:
    return [root] if _is_category(root) else [f for f in subfolders(root) if _is_category(f)]


def _annotation_files(root: Path, annotations: Path | None = None) -> dict[tuple[str, str], Path]:
    """VGGT's files by category and split."""
    folders = [annotations] if annotations else [root, root / "annotations", *subfolders(root)]
    found = {}
    for folder in folders:
        for stem, path in by_stem(folder, (".jgz",)).items():
            category, _, split = stem.rpartition("_")
            if split in ("train", "test") and category:
                found.setdefault((category, split), path)
    return found


def _is_dust3r_sequence(folder: Path) -> bool:
    return bool(by_stem(folder / "images", (".npz",)))


def _dust3r_sequences(root: Path) -> list[Path]:
    inner = [f for category in subfolders(root) for f in subfolders(category)]
    return [f for f in inner if _is_dust3r_sequence(f)]


class CO3D(DataSet):
    """Sequences are called "CATEGORY/SEQUENCE"; frames are in the order of the annotation file.

    Args of `open`, beside the folder:
        annotations: the folder of VGGT's `CATEGORY_test.jgz`, if it is neither the root nor a
            folder in it.
        split: "test" or "train", of VGGT's annotations.
        min_viewpoint_quality: sequences with a lower score, or just this, are left out; None takes
            all. VGGT's annotations were made with 0.5.
        max_translation: sequences with a larger x + y + z of a camera are left out; None takes all.
        set_list: of `set_lists`, such as "fewview_dev/test": frames that are not in it are none of
            the data set.
    """

    name = "co3d"
    about = About(
        title="CO3Dv2",
        licence="CC BY-NC 4.0",
        source="https://github.com/facebookresearch/co3d",
        paper="Reizenstein et al., Common Objects in 3D, ICCV 2021",
    )
    unit = "arbitrary"
    layouts = (
        Layout(
            "dust3r",
            "CATEGORY/SEQUENCE/images/frame000001.jpg with frame000001.npz",
            lambda root: bool(_dust3r_sequences(root)),
        ),
        Layout(
            "vggt",
            "CATEGORY_test.jgz in the folder or in one below it, such as annotations/",
            lambda root: bool(_annotation_files(root)),
        ),
        Layout(
            "original",
            "CATEGORY/frame_annotations.jgz and sequence_annotations.jgz",
            lambda root: bool(_categories(root)),
        ),
    )

    def __init__(
        self,
        root: Path,
        layout: str,
        *,
        annotations: str | Path | None = None,
        split: str = "test",
        min_viewpoint_quality: float | None = 0.5,
        max_translation: float | None = MOST_TRANSLATION,
        set_list: str | None = None,
    ):
        super().__init__(root, layout)
        if split not in ("train", "test"):
            raise InputError(f'split={split!r} must be "train" or "test"')
        limits = {
            "min_viewpoint_quality": min_viewpoint_quality, "max_translation": max_translation,
        }  # fmt: skip
        for name, limit in limits.items():
            if limit is not None and not isinstance(limit, int | float):
                raise InputError(f"{name}={limit!r} must be a number or None")
        self._annotations = None if annotations is None else Path(annotations)
        self._split, self._set_list = split, set_list
        self._least_quality, self._most = min_viewpoint_quality, max_translation
        self._records = functools.lru_cache(maxsize=1)(self._read_category)

    @classmethod
    def open(cls, root: str | Path, **options: Any) -> "CO3D":
        annotations = options.get("annotations")
        if annotations is not None:
            if not _annotation_files(Path(root), Path(annotations)):
                raise InputError(f"{annotations}: holds no CATEGORY_test.jgz")
            return cls(Path(root), "vggt", **options)
        return super().open(root, **options)

    def sequences(self) -> list[str]:
        return list(self._listed)

    @functools.cached_property
    def _listed(self) -> list[str]:
        if self.layout == "dust3r":
            return [f"{f.parent.name}/{f.name}" for f in self._dust3r_chosen()]
        found = []
        for category in self._category_names():
            records = self._records(category)
            for sequence in sorted(records):
                name = f"{category}/{sequence}"
                quality = self._qualities(category).get(sequence)
                least = -np.inf if self._least_quality is None else self._least_quality
                if quality is not None and not quality > least:
                    self.problems.add(LOW_QUALITY, name)
                    continue
                if self._most is not None and _is_far(records[sequence], self._most):
                    self.problems.add(FAR_CAMERA, name)
                    continue
                if not (self._base() / category / sequence / "images").is_dir():
                    self.problems.add("sequence has no images", name)
                    continue
                found.append(name)
        return found

    def _dust3r_chosen(self) -> list[Path]:
        """Those of `selected_seqs_SPLIT.json` where there is one, else all."""
        found = _dust3r_sequences(self.root)
        path = self.root / f"selected_seqs_{self._split}.json"
        if not path.is_file():
            return found
        with naming(path, "list of sequences"):
            chosen = json.loads(path.read_text())
        names = {f"{c}/{s}" for c, sequences in chosen.items() for s in sequences}
        there = {f"{f.parent.name}/{f.name}": f for f in found}
        for missing in sorted(names - set(there)):
            self.problems.add("sequence is missing", missing)
        return [f for name, f in there.items() if name in names]

    def _category_names(self) -> list[str]:
        if self.layout == "vggt":
            files = _annotation_files(self.root, self._annotations)
            return sorted(category for category, split in files if split == self._split)
        return [folder.name or folder.resolve().name for folder in _categories(self.root)]

    def _base(self) -> Path:
        """The folder that paths of annotations start at."""
        return self.root.resolve().parent if _is_category(self.root) else self.root

    def _read_category(self, category: str) -> dict[str, list[dict[str, Any]]]:
        """Records of frames by sequence, in the order of the file."""
        if self.layout == "vggt":
            path = _annotation_files(self.root, self._annotations)[category, self._split]
            found = _jgz(path)
            if not isinstance(found, dict):
                raise InputError(
                    f"{path}: must be an object of sequences; CO3D's own lie elsewhere"
                )
            return found
        path = self._base() / category / "frame_annotations.jgz"
        chosen = self._chosen(category)
        found: dict[str, list[dict[str, Any]]] = {}
        with naming(path, "list of frames"):
            for record in _jgz(path):
                key = record["sequence_name"], record["frame_number"]
                if chosen is None or key in chosen:
                    found.setdefault(record["sequence_name"], []).append(record)
        return found

    def _chosen(self, category: str) -> set[tuple[str, int]] | None:
        if self._set_list is None:
            return None
        name, _, part = self._set_list.partition("/")
        path = self._base() / category / "set_lists" / f"set_lists_{name}.json"
        with naming(
            path, f"list of frames; there are {', '.join(_LISTS)} and part, as in name/test"
        ):
            parts = json.loads(path.read_bytes())
            entries = parts[part] if part else [x for rows in parts.values() for x in rows]
            return {(entry[0], entry[1]) for entry in entries}

    @functools.cache  # noqa: B019  as many entries as categories
    def _qualities(self, category: str) -> dict[str, float]:
        path = self._base() / category / "sequence_annotations.jgz"
        if self.layout == "vggt" or not path.is_file():
            if self.layout != "vggt":
                self.problems.add("sequence_annotations.jgz is missing", category)
            return {}
        with naming(path, "list of sequences"):
            return {
                record["sequence_name"]: record["viewpoint_quality_score"]
                for record in _jgz(path)
                if record.get("viewpoint_quality_score") is not None
            }

    def _load(self, name: str, problems: Problems) -> Sequence:
        category, _, sequence = name.partition("/")
        base = self._base() / category / sequence
        if self.layout == "dust3r":
            frames = _dust3r_frames(base, name, problems)
        else:
            frames = self._annotated(category, sequence, problems)
        cloud = base / "pointcloud.ply"
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(frames),
            unit=self.unit,
            category=category,
            split=self._split if self.layout != "original" else self._set_list,
            read_points=functools.partial(_scan, cloud) if cloud.is_file() else None,
            problems=problems,
        )

    def _annotated(self, category: str, sequence: str, problems: Problems) -> list[Frame]:
        frames = []
        for i, record in enumerate(self._records(category)[sequence]):
            try:
                path = record["filepath"] if self.layout == "vggt" else record["image"]["path"]
            except (KeyError, TypeError):
                problems.add("record has no image", f"{category}/{sequence}, record {i}")
                continue
            image = first_file(self._base() / path) or self._base() / path
            label = f"{category}/{sequence}/{image.stem}"
            size = usable_size(image, problems, label)
            if size is None:
                continue
            try:
                with naming(image, f"photograph with a camera ({label})"):
                    matrix, pose = _camera(record, size, problems, label)
            except InputError:
                problems.add(NO_CAMERA, label)
                matrix = pose = None
            read_depth, read_mask_ = self._depth_and_mask(record, image, problems, label)
            frames.append(
                Frame(
                    name=image.stem,
                    index=i,
                    image=image,
                    intrinsics=matrix,
                    camera_from_world=pose,
                    read_image=functools.partial(read_rgb, image),
                    read_depth=read_depth,
                    read_mask=read_mask_,
                )
            )
        return frames

    def _depth_and_mask(self, record, image: Path, problems: Problems, label: str):
        """Readers of the depth and the mask that lie where the data set has them, or None."""
        folder, base = image.parent.parent, self._base()
        depth = folder / "depths" / f"{image.name}.geometric.png"
        known = folder / "depth_masks" / f"{image.stem}.png"
        mask, scale = folder / "masks" / f"{image.stem}.png", 1.0
        told_depth, told_mask = record.get("depth"), record.get("mask")
        if isinstance(told_depth, dict) and told_depth.get("path"):
            depth = base / told_depth["path"]
            scale = float(told_depth.get("scale_adjustment") or 1.0)
            known = base / told_depth["mask_path"] if told_depth.get("mask_path") else known
        if isinstance(told_mask, dict) and told_mask.get("path"):
            mask = base / told_mask["path"]
        depth, known, mask = first_file(depth), first_file(known), first_file(mask)
        # VGGT's annotations do not say that there is depth.
        if isinstance(told_depth, dict):
            if depth is None:
                problems.add(NO_DEPTH, label)
            elif known is None:
                problems.add("mask of depth is missing", label)
        if isinstance(told_mask, dict) and mask is None:
            problems.add(NO_MASK, label)
        return (
            None if depth is None else functools.partial(read_depth, depth, known, scale),
            None if mask is None else functools.partial(read_mask, mask),
        )


def read_depth(path: Path, mask: Path | None, scale: float) -> np.ndarray:
    """Depth of CO3D: float16 in 16 bits, times a scale, where its mask is set and it is finite.

    Args:
        path: a PNG of 16 bits.
        mask: brighter than 128 where depth is known, one bit or eight; None for all.
        scale: `scale_adjustment`.
    """
    values = read_uint16(path).view(np.float16).astype(np.float32)
    depth = finite_depth(np.where(np.isfinite(values), values, 0) * np.float32(scale))
    if mask is not None:
        known = read_mask(mask, above=128)
        if known.shape != depth.shape:
            raise InputError(f"{mask}: is of another size than its depth, {path}")
        depth = np.where(known, depth, np.float32(0))
    return depth


def opencv_from_pytorch3d(rotation, translation) -> np.ndarray:
    """A camera_from_world [3 4] in OpenCV's axes.

    PyTorch3D has `x_camera = x_world @ R + T` for rows of points, x left and y up.

    Args:
        rotation: R, 3x3.
        translation: T.
    """
    rotation = np.array(rotation, np.float64).reshape(3, 3)
    translation = np.array(translation, np.float64).reshape(3)
    return np.concatenate([(rotation * _FLIP).T, (translation * _FLIP)[:, None]], axis=1)


def intrinsics_from_ndc(focal, principal, kind: str, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics in pixels, whose centres lie at i + 0.5.

    Args:
        focal, principal: two numbers each.
        kind: "ndc_isotropic", where half the shorter side is 1, or "ndc_norm_image_bounds", where
            half of either side is.
        size: height and width.
    """
    height, width = size
    half = np.array([width, height]) / 2
    if kind == "ndc_isotropic":
        unit = np.full(2, min(height, width) / 2)
    elif kind == "ndc_norm_image_bounds":
        unit = half
    else:
        raise ValueError(f"intrinsics_format {kind!r} is not known")
    focal = np.broadcast_to(np.array(focal, np.float64), 2) * unit
    centre = half - np.array(principal, np.float64) * unit
    return pinhole(*focal, *centre)


def _camera(record: dict[str, Any], size: tuple[int, int], problems: Problems, label: str):
    """Intrinsics and pose of a record of CO3D or of either kind of VGGT's annotations."""
    if "extri" in record:  # OpenCV and pixels, as in the annotations that VGGT was trained on.
        pose = np.array(record["extri"], np.float64)
        return np.array(record["intri"], np.float64)[:3, :3], rigid(
            pose, problems, label, inverse=False
        )
    # What VGGT's own annotations leave out is always isotropic.
    viewpoint, default = record, "ndc_isotropic"
    if "viewpoint" in record:
        viewpoint, default = record["viewpoint"], "ndc_norm_image_bounds"
    told = record.get("image")
    if isinstance(told, dict) and tuple(told.get("size", size)) != size:
        problems.add("image is of another size than annotated", label)
    matrix = intrinsics_from_ndc(
        viewpoint["focal_length"],
        viewpoint["principal_point"],
        viewpoint.get("intrinsics_format") or default,
        size,
    )
    pose = opencv_from_pytorch3d(viewpoint["R"], viewpoint["T"])
    return matrix, rigid(pose, problems, label, inverse=False)


def _is_far(records: list[dict[str, Any]], most: float) -> bool:
    """Whether the sum of the numbers of any translation is above, as VGGT's evaluation asks."""
    for record in records:
        translation = (record.get("viewpoint") or record).get("T")
        if isinstance(translation, list) and sum(translation) > most:
            return True
    return False


def _scan(path: Path) -> Scan:
    points, normals = read_ply(path)
    return Scan(points=points, normals=normals)


def _dust3r_frames(base: Path, name: str, problems: Problems) -> list[Frame]:
    """Cropped about the principal point, as DUSt3R's preprocessing leaves them."""
    images, cameras = by_stem(base / "images"), by_stem(base / "images", (".npz",))
    frames = []
    for i, stem in enumerate(sorted({*images, *cameras})):
        label = f"{name}/{stem}"
        if usable_size(images.get(stem), problems, label) is None:
            continue
        matrix = pose = None
        farthest = 0.0
        try:
            if stem not in cameras:
                raise InputError("no camera")
            with naming(cameras[stem], "camera"), np.load(cameras[stem]) as file:
                matrix = np.array(file["camera_intrinsics"], np.float64).reshape(3, 3)
                farthest = float(file["maximum_depth"])
                pose = rigid(file["camera_pose"], problems, label, inverse=True)
        except InputError:
            problems.add(NO_CAMERA, label)
        image = images[stem]
        depth = first_file(base / "depths" / f"{image.name}.geometric.png")
        mask = first_file(base / "masks" / f"{stem}.png")
        if depth is None:
            problems.add(NO_DEPTH, label)
        frames.append(
            Frame(
                name=stem,
                index=i,
                image=image,
                intrinsics=matrix,
                camera_from_world=pose,
                read_image=functools.partial(read_rgb, image),
                read_depth=functools.partial(_dust3r_depth, depth, farthest)
                if depth is not None and farthest > 0
                else None,
                read_mask=None if mask is None else functools.partial(read_mask, mask, above=25),
            )
        )
    return frames


def _dust3r_depth(path: Path, farthest: float) -> np.ndarray:
    return finite_depth(read_uint16(path).astype(np.float32) * np.float32(farthest / 65535))
