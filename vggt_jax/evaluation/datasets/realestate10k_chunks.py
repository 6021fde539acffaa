"""RealEstate10K as pixelSplat packs it: clips in `.torch` files, photographs and all.

Each file is a list of clips: `key`, `url`, `timestamps` in microseconds, `cameras` [n 18] (fx, fy,
cx, cy as shares of width and height, two zeros, the 3x4 camera_from_world by rows) and `images`,
the bytes of a JPEG each. `index.json` beside the files says which clip lies in which.
"""

import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.base import Frame, Problems
from vggt_jax.evaluation.datasets.reading import (
    DAMAGED_IMAGE,
    NO_IMAGE,
    by_stem,
    naming,
    pinhole,
    rigid,
)
from vggt_jax.evaluation.datasets.torch_archive import StoredTensor, read_archive
from vggt_jax.files.documents import read_json
from vggt_jax.images.opening import reading

DAMAGED_CHUNK = "file of clips cannot be read"


def chunk_folders(root: Path) -> list[tuple[str | None, Path]]:
    """Folders of `.torch` files, with the split."""
    own = root.name if root.name in ("train", "test") else None
    folders = [(own, root), ("train", root / "train"), ("test", root / "test")]
    return [(split, folder) for split, folder in folders if by_stem(folder, (".torch",))]


def clips_of(root: Path, problems: Problems) -> dict[str, tuple[str | None, Path]]:
    """The split and the file of each clip, by name; files without an index are all opened."""
    found: dict[str, tuple[str | None, Path]] = {}
    for split, folder in chunk_folders(root):
        files = {path.name: path for path in by_stem(folder, (".torch",)).values()}
        index: Any = {}
        if (path := folder / "index.json").is_file():
            index = read_json(path, "index of clips")
            with naming(path, 'index of clips, {"clip": "000000.torch"}'):
                index = {str(clip): Path(name).name for clip, name in index.items()}
        for clip, name in index.items():
            if name in files:
                found.setdefault(clip, (split, files[name]))
            else:
                problems.add("file of clips is missing", name)
        for name in sorted(set(files) - set(index.values())):
            try:
                for clip in _chunk(files[name]):
                    found.setdefault(clip, (split, files[name]))
            except InputError as error:
                problems.add(DAMAGED_CHUNK, error)
    return dict(sorted(found.items()))


@functools.lru_cache(maxsize=4)
def _chunk(path: Path) -> dict[str, dict[str, Any]]:
    """The clips of a file by name; tensors are not read yet."""
    found = read_archive(path)
    with naming(path, "list of clips with key, timestamps, cameras and images"):
        return {str(clip["key"]): clip for clip in found}


def frames_of(path: Path, name: str, problems: Problems) -> list[Frame]:
    """The frames of a clip, by time.

    Raises:
        InputError: the file is missing or damaged, or does not hold the clip.
    """
    clips = _chunk(path)
    if name not in clips:
        raise InputError(f"{path}: does not hold clip {name}, as its index says")
    with naming(path, "list of clips with key, timestamps, cameras and images"):
        clip = clips[name]
        times = clip["timestamps"].read().reshape(-1)
        cameras = clip["cameras"].read().astype(np.float64)
        images: list[StoredTensor] = list(clip["images"])
        if cameras.shape != (len(images), 18) or len(times) != len(images):
            raise ValueError(
                f"clip {name} has {len(times)} times, cameras of shape {cameras.shape} and "
                f"{len(images)} images"
            )
    frames = []
    for index, i in enumerate(np.argsort(times, kind="stable")):
        label = f"{name}/{times[i]}"
        read_image = functools.partial(_read_image, images[i], label)
        size = _size(images[i], problems, label)
        if size is None:
            continue
        fx, fy, cx, cy = cameras[i, :4] * [size[1], size[0], size[1], size[0]]
        frames.append(
            Frame(
                name=str(times[i]),
                index=index,
                image=path,
                intrinsics=pinhole(fx, fy, cx, cy),
                camera_from_world=rigid(
                    cameras[i, 6:].reshape(3, 4), problems, label, inverse=False
                ),
                read_image=read_image,
            )
        )
    return frames


def _size(image: StoredTensor, problems: Problems, label: str) -> tuple[int, int] | None:
    """Height and width; None, and a problem, of one that is empty or damaged."""
    if not image.shape or 0 in image.shape:
        problems.add(NO_IMAGE, label)
        return None
    try:
        with reading(label), Image.open(io.BytesIO(image.read().tobytes())) as picture:
            return picture.height, picture.width
    except InputError:
        problems.add(DAMAGED_IMAGE, label)
        return None


def _read_image(image: StoredTensor, label: str) -> np.ndarray:
    with reading(label), Image.open(io.BytesIO(image.read().tobytes())) as picture:
        return np.array(picture.convert("RGB"))
