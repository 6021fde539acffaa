"""ETH3D, high-resolution multi-view, training: 13 scenes with depth and scans by laser.

Photographs are distorted (THIN_PRISM_FISHEYE), and so is their depth, a file of raw float32 with
the name of a photograph, infinite where there is none. Models see undistorted photographs: the
official ones where they are there, else ours, made with the whole lens; depth and masks are brought
to them from the nearest pixel.

Masks: 1 is what was left out when cameras were refined, 2 what is wrong and left out of
evaluations, where depth is empty already.
"""

import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

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
from vggt_jax.evaluation.datasets.colmap_model import (
    ColmapCamera,
    ColmapImage,
    has_model,
    read_model,
)
from vggt_jax.evaluation.datasets.eth3d_lens import Lens, like_pi3, undistorted
from vggt_jax.evaluation.datasets.reading import (
    NO_DEPTH,
    by_stem,
    finite_depth,
    first_file,
    folders_that,
    naming,
    read_grey,
    read_ply,
    read_rgb,
    rigid,
    scaled,
    usable_size,
)

SCENES = (
    "courtyard delivery_area electro facade kicker meadow office pipes playground relief relief_2 "
    "terrace terrains"
).split()
_DISTORTED, _UNDISTORTED, _PI3 = "dslr_images", "dslr_images_undistorted", "custom_undistorted"
_OF_LENS, _OF_PINHOLE = "dslr_calibration_jpg", "dslr_calibration_undistorted"
Images = Literal["undistorted", "exact", "pi3", "distorted"]


def _is_scene(folder: Path) -> bool:
    return any(has_model(folder / part) for part in (_OF_LENS, _OF_PINHOLE))


def _is_pi3_scene(folder: Path) -> bool:
    return bool(by_stem(folder / f"{_PI3}_cam", (".npz",)))


class ETH3D(DataSet):
    """Sequences are scenes; frames are in the order of their names.

    Args of `open`, beside the folder:
        images: "undistorted", the official ones where a scene has them, else as "exact";
            "exact", undistorted here with the whole lens, size and intrinsics kept;
            "pi3", undistorted here as in π³'s preparation, with half of the lens;
            "distorted", as stored, with `Frame.rays`. Of folders that π³'s preparation has
            written there is only one kind.
        masked: values of a mask where pixels do not count: (2,) as ETH3D's own evaluation, or
            (1, 2).
    """

    name = "eth3d"
    about = About(
        title="ETH3D high-resolution multi-view",
        licence="CC BY-NC-SA 4.0, by its page",
        source="https://www.eth3d.net/datasets",
        paper="Schoeps et al., A Multi-View Stereo Benchmark, CVPR 2017",
    )
    unit = "metre"
    scenes = tuple(SCENES)
    layouts = (
        Layout(
            "original",
            f"SCENE/images/{_DISTORTED} with {_OF_LENS}/images.txt, or the undistorted ones",
            lambda root: bool(folders_that(root, _is_scene, 2)),
        ),
        Layout(
            "pi3",
            f"SCENE/images/{_PI3}/DSC_0286.JPG with {_PI3}_cam/DSC_0286.npz",
            lambda root: bool(folders_that(root, _is_pi3_scene, 2)),
        ),
    )

    def __init__(
        self,
        root: Path,
        layout: str,
        *,
        images: Images = "undistorted",
        masked: int | Iterable[int] = (2,),
    ):
        super().__init__(root, layout)
        if images not in ("undistorted", "exact", "pi3", "distorted"):
            raise InputError(
                f'images {images!r} must be "undistorted", "exact", "pi3" or "distorted"'
            )
        self._images = images
        self._masked = (masked,) if isinstance(masked, int) else tuple(masked)

    def sequences(self) -> list[str]:
        return list(self._scenes)

    @functools.cached_property
    def _scenes(self) -> dict[str, Path]:
        is_one = _is_scene if self.layout == "original" else _is_pi3_scene
        found = folders_that(self.root, is_one, 2)
        return {folder.name or folder.resolve().name: folder for folder in found}

    def _load(self, name: str, problems: Problems) -> Sequence:
        folder = self._scenes[name]
        if self.layout == "pi3":
            frames = _pi3_frames(folder, name, problems)
        else:
            frames = _Scene(folder, name, problems, self._images, self._masked).frames()
        alignment = first_file(
            *(
                folder / part / "scan_alignment.mlp"
                for part in ("dslr_scan_eval", "scan_eval", "dslr_scan_clean", "scan_clean")
                if (folder / part).is_dir()
            )
        )
        return Sequence(
            dataset=self.name,
            name=name,
            frames=tuple(frames),
            unit=self.unit,
            split="training" if name in SCENES else None,
            read_points=None if alignment is None else functools.partial(read_scans, alignment),
            problems=problems,
        )


class _Scene:
    """What the frames of a scene of the original layout have in common."""

    def __init__(self, folder: Path, name: str, problems: Problems, images: str, masked):
        self.folder, self.name, self.problems, self.masked = folder, name, problems, masked
        lens = folder / _OF_LENS
        self.lens_model = _by_name(lens, *read_model(lens)) if has_model(lens) else {}
        is_official = has_model(folder / _OF_PINHOLE) and bool(
            by_stem(folder / "images" / _UNDISTORTED)
        )
        self.is_official = is_official and images == "undistorted"
        if not self.is_official and not self.lens_model:
            raise InputError(f"{folder}: {images} images need {_OF_LENS}, which is missing")
        self.images = "exact" if images == "undistorted" and not is_official else images

    def frames(self) -> list[Frame]:
        """All frames that have an image."""
        if self.is_official:
            pinhole = self.folder / _OF_PINHOLE
            model, part = _by_name(pinhole, *read_model(pinhole)), _UNDISTORTED
        else:
            model, part = self.lens_model, _DISTORTED
        there = by_stem(self.folder / "images" / part)
        stems = {key.lower(): path for key, path in there.items()}
        for missing in sorted(set(stems) - set(model)):
            self.problems.add("image has no camera", f"{self.name}/{stems[missing].name}")
        frames = []
        for i, key in enumerate(sorted(model)):
            camera, entry = model[key]
            label = f"{self.name}/{Path(entry.name).name}"
            size = usable_size(stems.get(key), self.problems, label)
            if size is not None:
                frames.append(self._frame(i, key, stems[key], size, camera, entry, label))
        return frames

    def _frame(
        self,
        index: int,
        key: str,
        image: Path,
        size: tuple[int, int],
        camera: ColmapCamera,
        entry: ColmapImage,
        label: str,
    ) -> Frame:
        across, down = size[1] / camera.size[1], size[0] / camera.size[0]
        if size != camera.size:
            self.problems.add("image is of another size than its camera, which is scaled", label)
        matrix = scaled(camera.intrinsics, across, down)
        depth, masks = self._depth_file(image, label), self._mask_files(key)
        lens = _lens(self.lens_model[key][0]) if key in self.lens_model else None
        make = functools.partial(functools.partial, _brought, self.images, lens, matrix, size)
        read_image = functools.partial(read_rgb, image)
        if not self.is_official and self.images != "distorted":
            read_image = make(read_image, "image")
        read_depth = read_mask = None
        if lens is not None:
            if depth is not None:
                read_depth = make(functools.partial(read_raw_depth, depth, lens.size), "depth")
            if masks:
                labels = functools.partial(_labels, masks, lens.size, self.masked)
                read_mask = make(labels, "mask")
        return Frame(
            name=image.name,
            index=index,
            image=image,
            intrinsics=matrix,
            camera_from_world=rigid(entry.camera_from_world, self.problems, label, inverse=False),
            read_image=read_image,
            read_depth=read_depth,
            read_mask=read_mask,
            rays=_lens(camera, matrix, size).rays if self.images == "distorted" else None,
        )

    def _depth_file(self, image: Path, label: str) -> Path | None:
        base = self.folder / "ground_truth_depth"
        if not base.is_dir():
            return None
        depth = first_file(base / _DISTORTED / image.name)
        if depth is None:
            self.problems.add(NO_DEPTH, label)
        return depth

    def _mask_files(self, key: str) -> tuple[Path, ...]:
        of_image = {
            stem.lower(): path
            for stem, path in by_stem(self.folder / "masks_for_images" / _DISTORTED).items()
        }
        of_camera = first_file(self.folder / "masks_for_cameras" / f"{_DISTORTED}.png")
        return tuple(path for path in (of_image.get(key), of_camera) if path is not None)


def _by_name(
    folder: Path, cameras: dict[int, ColmapCamera], images: list[ColmapImage]
) -> dict[str, tuple[ColmapCamera, ColmapImage]]:
    """Cameras and images by the names of files, in lower case, without endings and folders."""
    found = {}
    for image in images:
        if image.camera not in cameras:
            raise InputError(
                f"{folder}: the camera of {image.name}, {image.camera}, is not in cameras.txt"
            )
        found[Path(image.name).stem.lower()] = cameras[image.camera], image
    return found


def _lens(camera: ColmapCamera, matrix=None, size=None) -> Lens:
    if camera.model not in ("THIN_PRISM_FISHEYE", "PINHOLE", "SIMPLE_PINHOLE"):
        raise InputError(
            f"camera model {camera.model} is none of ETH3D's; take its own calibration"
        )
    return Lens(
        camera.intrinsics if matrix is None else matrix,
        camera.size if size is None else size,
        camera.distortion,
    )


def _brought(
    images: str, lens: Lens, matrix: np.ndarray, size: tuple[int, int], read, what: str
) -> np.ndarray:
    """An image, depth or mask of the distorted photograph, as frames of this kind have it."""
    picture = read()
    if what == "image" and picture.shape[:2] != lens.size:
        across, down = picture.shape[1] / lens.size[1], picture.shape[0] / lens.size[0]
        lens = Lens(scaled(lens.intrinsics, across, down), picture.shape[:2], lens.params)
    if images == "distorted":
        return picture
    if images == "pi3":
        return like_pi3(picture, lens, depth=what != "image")
    return undistorted(picture, lens, matrix, size, nearest=what != "image")


def read_raw_depth(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Depth [height width] of a file of little-endian float32 without a header; 0 for none.

    Raises:
        InputError: the file has another size.
    """
    with naming(path, "file of raw float32"):
        values = np.fromfile(path, "<f4")
    if values.size != size[0] * size[1]:
        raise InputError(
            f"{path}: has {values.size} numbers, and {size[1]}x{size[0]} pixels need "
            f"{size[0] * size[1]}; take depth and images of the same archive"
        )
    return finite_depth(values.reshape(size))


def _labels(paths: tuple[Path, ...], size: tuple[int, int], masked) -> np.ndarray:
    """Where no mask has one of the values."""
    counts = np.ones(size, bool)
    for path in paths:
        labels = read_grey(path)
        if labels.shape != size:
            raise InputError(f"{path}: is of another size than its photograph")
        counts &= ~np.isin(labels, masked)
    return counts


def _pi3_frames(folder: Path, name: str, problems: Problems) -> list[Frame]:
    """What π³'s preparation has written."""
    images = by_stem(folder / "images" / _PI3)
    cameras = by_stem(folder / f"{_PI3}_cam", (".npz",))
    frames = []
    for i, stem in enumerate(sorted({*images, *cameras})):
        label = f"{name}/{stem}"
        size = usable_size(images.get(stem), problems, label)
        if size is None:
            continue
        matrix = pose = None
        if stem not in cameras:
            problems.add("camera is missing", label)
        else:
            with naming(cameras[stem], "camera"), np.load(cameras[stem]) as file:
                matrix = np.array(file["intrinsics"], np.float64).reshape(3, 3)
                pose = rigid(file["extrinsics"], problems, label, inverse=False)
        depth = first_file(folder / "ground_truth_depth" / _PI3 / images[stem].name)
        if depth is None:
            problems.add(NO_DEPTH, label)
        frames.append(
            Frame(
                name=images[stem].name,
                index=i,
                image=images[stem],
                intrinsics=matrix,
                camera_from_world=pose,
                read_image=functools.partial(read_rgb, images[stem]),
                read_depth=None
                if depth is None
                else functools.partial(read_raw_depth, depth, size),
            )
        )
    return frames


def read_scans(alignment: Path) -> Scan:
    """All scans of a MeshLab project in the coordinates of the cameras.

    Raises:
        InputError: the project or a scan is missing or damaged.
    """
    points, normals = [], []
    with naming(alignment, "MeshLab project"):
        try:
            root = ElementTree.parse(alignment).getroot()
        except ElementTree.ParseError as error:
            raise InputError(f"{alignment}: is no MeshLab project ({error})") from error
        for mesh in root.iter("MLMesh"):
            words = (mesh.findtext("MLMatrix44") or "").split()
            matrix = np.array([float(x) for x in words]).reshape(4, 4) if words else np.eye(4)
            found, directions = read_ply(alignment.parent / mesh.attrib["filename"])
            points.append(found @ matrix[:3, :3].T + matrix[:3, 3])
            normals.append(None if directions is None else directions @ matrix[:3, :3].T)
    if not points:
        raise InputError(f"{alignment}: names no scan")
    whole = [x for x in normals if x is not None]
    return Scan(
        points=np.concatenate(points),
        normals=np.concatenate(whole) if len(whole) == len(normals) else None,
    )
