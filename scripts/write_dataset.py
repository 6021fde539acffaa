"""Writes a tiny data set in the exact layout of a published one, with what goes wrong in it.

    python scripts/write_dataset.py 7scenes FOLDER
    python scripts/write_dataset.py co3d FOLDER --layout dust3r --frames 12 --size 48 64

Pictures are rendered from the world of `dataset_world.py`; nothing of the data sets is in them.
Files are written from descriptions of the layouts, without the package's loaders.
"""

import argparse
import gzip
import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from dataset_world import (
    View,
    camera,
    pixel_rays,
    render,
    surface_points,
    track,
)
from PIL import Image
from torch_files import save_torch

NEWLINE = "\r\n"  # 7-Scenes and others were made on Windows.


class Written:
    """What was written: for each sequence the cameras of image and depth by the frames' index."""

    def __init__(self):
        self.images: dict[str, dict[int, View]] = {}
        self.depths: dict[str, dict[int, View]] = {}

    def add(self, sequence, index, view, depth=None):
        """Notes a frame; the camera of its depth map where it has one."""
        self.images.setdefault(sequence, {})[index] = view
        if depth is not None:
            self.depths.setdefault(sequence, {})[index] = depth


def save(path, array, **options):
    """A picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    Image.fromarray(array).save(
        path, form, **({"quality": 95, "subsampling": 0} if form == "JPEG" else {}), **options
    )


def jpeg(array):
    """The bytes of a JPEG."""
    file = BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def save_text(path, text, newline="\n"):
    """A text file with this end of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.replace("\n", newline).encode())


def matrix_text(matrix, form="%.9f", between=" ", trailing=""):
    """Rows by lines."""
    return "".join(between.join(form % x for x in row) + trailing + "\n" for row in matrix)


def millimetres(depth, *, rounding=np.round):
    """16 bits, 0 where nothing is."""
    return np.where(
        np.isfinite(depth), rounding(np.where(np.isfinite(depth), depth, 0) * 1000), 0
    ).astype(np.uint16)


def save_ply(path, points, normals=None, *, text=False):
    """A cloud, as binary or as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["x", "y", "z"] + (["nx", "ny", "nz"] if normals is not None else [])
    values = points if normals is None else np.concatenate([points, normals], 1)
    kind = "ascii" if text else "binary_little_endian"
    header = f"ply\nformat {kind} 1.0\nelement vertex {len(points)}\n"
    header += "".join(f"property float {name}\n" for name in names) + "end_header\n"
    body = matrix_text(values, "%.7g").encode() if text else values.astype("<f4").tobytes()
    path.write_bytes(header.encode() + body)


def inverse(pose):
    """The other direction."""
    return np.linalg.inv(pose)


def views_of(number, size, *, seed=0, focal=0.9, centre=(0.5, 0.5)):
    """Cameras along the track; focal length as a share of the width, principal point of both."""
    height, width = size
    matrix = camera(focal * width, focal * width, centre[0] * width, centre[1] * height)
    return [
        View(camera_from_world=pose, intrinsics=matrix, size=size)
        for pose in track(number, seed=seed)
    ]


# ----------------------------------------------------------------------------------- RealEstate10K


def write_re10k(root, layout, number, size):
    """Clips of two shapes, and one of nine frames, which published lists leave out."""
    written = Written()
    height, width = size
    sizes = {"0123456789abcdef": size, "1123456789abcdef": (round(height * 0.94), width)}
    packed = [
        _clip(root, layout, clip, views_of(number, shape, seed=number_of), written)
        for number_of, (clip, shape) in enumerate(sizes.items())
    ]
    packed.append(_clip(root, layout, "2123456789abcdef", views_of(9, size, seed=7), written))
    if layout == "pixelsplat":
        chunks = {"000000.torch": packed[:2], "000001.torch": packed[2:]}
        for name, clips in chunks.items():
            save_torch(root / "test" / name, clips)
        index = {clip["key"]: name for name, clips in chunks.items() for clip in clips}
        save_text(root / "test" / "index.json", json.dumps(index))
    if layout == "original":
        lines = [f"test/{clip}\n" for clip in written.images]
        save_text(root / "frames" / "test" / "video_loc.txt", "".join(lines))
    return written


def _clip(root, layout, clip, views, written):
    """Writes a clip; what pixelSplat packs of it."""
    records, lines = [], ["https://www.youtube.com/watch?v=none\n"]
    times, rows, images = [], [], []
    for i, view in enumerate(views):
        time = 158692025 + 266933 * i
        colours, _ = render(view)
        height, width = view.size
        (fx, _, cx), (_, fy, cy), _ = view.intrinsics
        shares = [fx / width, fy / height, cx / width, cy / height, 0, 0]
        pose = view.camera_from_world
        words = [f"{x:.9f}" for x in (*shares, *pose[:3].ravel())]
        lines.append(" ".join([str(time), *words]) + " \n")
        written.add(clip, i, view)
        if layout == "original":
            save(root / "frames" / "test" / clip / f"{time}.png", colours)
        elif layout == "pi3":
            name = f"{clip}/images/{i:04d}.png"
            save(root / name, colours)
            records.append(
                {
                    "idx": i,
                    "filepath": name,
                    "intrinsics": view.intrinsics.tolist(),
                    "extrinsics": pose.tolist(),
                }
            )
        elif layout == "pixelsplat":
            times.append(time)
            rows.append([*shares, *pose[:3].ravel()])
            images.append(np.frombuffer(jpeg(colours), np.uint8))
        else:
            save(root / clip / "rgb" / f"{time}.png", colours)
            (root / clip / "cam").mkdir(exist_ok=True)
            np.savez(
                root / clip / "cam" / f"{time}.npz", intrinsics=view.intrinsics, pose=inverse(pose)
            )
    if layout == "original":
        save_text(root / "test" / f"{clip}.txt", "".join(lines))
    elif layout == "pi3":
        save_text(root / clip / "annotations.json", json.dumps(records))
    return {
        "key": clip, "url": lines[0].strip(), "timestamps": np.array(times, np.int64),
        "cameras": np.array(rows, np.float32), "images": images,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- CO3D


def write_co3d(root, layout, number, size):
    """Portrait and landscape, a sequence of low quality, one with a camera far away."""
    written = Written()
    sequences, frames, scenes = [], [], {}
    kinds = {"110_1_2": 0.9, "120_3_4": 1.3, "130_5_6": 0.2, "140_7_8": 0.8}
    for k, (name, quality) in enumerate(kinds.items()):
        shape = size if k % 2 else size[::-1]
        views = views_of(number, shape, seed=k, focal=1.1 * size[1] / shape[1], centre=(0.47, 0.54))
        records = []
        for i, view in enumerate(views):
            is_far = name == "140_7_8" and i == 1
            records.append(_co3d_frame(root, layout, "apple", name, i, view, is_far, bounds=k == 1))
            if quality > 0.5 and name != "140_7_8":
                written.add(f"apple/{name}", i, view, view)
        sequences.append(
            {
                "sequence_name": name, "category": "apple", "viewpoint_quality_score": quality,
                "point_cloud": {
                    "path": f"apple/{name}/pointcloud.ply", "quality_score": 0.5, "n_points": 50,
                },
            }
        )  # fmt: skip
        if layout != "dust3r":
            save_ply(root / "apple" / name / "pointcloud.ply", surface_points(50))
        frames += records
        scenes[name] = records
    folder = root / "apple"
    if layout == "original":
        _jgz(folder / "frame_annotations.jgz", frames)
        _jgz(folder / "sequence_annotations.jgz", sequences)
        chosen = [[f["sequence_name"], f["frame_number"], f["image"]["path"]] for f in frames]
        lists = {"train": [], "val": [], "test": chosen[::2]}
        save_text(folder / "set_lists" / "set_lists_fewview_dev.json", json.dumps(lists))
    elif layout == "vggt":
        good = {
            name: [
                {
                    "filepath": f["image"]["path"],
                    **{k: f["viewpoint"][k] for k in ("R", "T", "focal_length", "principal_point")},
                }
                for f in records
            ]
            for name, records in scenes.items()
            if kinds[name] > 0.5
        }
        _jgz(root / "annotations" / "apple_test.jgz", good)
    else:
        chosen = {"apple": {n: list(range(1, number + 1)) for n in ("110_1_2", "120_3_4")}}
        save_text(root / "selected_seqs_test.json", json.dumps(chosen))
    return written


def _jgz(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(value).encode()))


def _co3d_frame(root, layout, category, name, i, view, is_far, *, bounds):
    colours, depth = render(view)
    height, width = view.size
    base = f"{category}/{name}"
    stem = f"frame{i + 1:06d}"
    finite = np.isfinite(depth)
    (fx, _, cx), (_, fy, cy), _ = view.intrinsics
    if bounds and layout == "original":
        kind = "ndc_norm_image_bounds"
        focal = [fx * 2 / width, fy * 2 / height]
        point = [1 - cx * 2 / width, 1 - cy * 2 / height]
    else:
        kind, side = "ndc_isotropic", min(height, width)
        focal, point = (
            [fx * 2 / side, fy * 2 / side],
            [(width / 2 - cx) * 2 / side, (height / 2 - cy) * 2 / side],
        )
    # Axes of PyTorch3D: x left, y up; points are rows that are multiplied from the left.
    flip = np.diag([-1.0, -1.0, 1.0])
    rows = (flip @ view.camera_from_world[:3, :3]).T
    place = flip @ view.camera_from_world[:3, 3]
    if is_far:
        place = place + 1e6
    save(root / base / "images" / f"{stem}.jpg", colours)
    mask = np.where(finite, 230, 20).astype(np.uint8)
    save(root / base / "masks" / f"{stem}.png", mask)
    path = root / base / "depths" / f"{stem}.jpg.geometric.png"
    scale = 1.0 if layout == "vggt" else 1.25  # VGGT's annotations leave it out.
    if layout == "dust3r":
        farthest = depth[finite].max()
        save(path, np.where(finite, np.round(depth / farthest * 65535), 0).astype(np.uint16))
        np.savez(
            root / base / "images" / f"{stem}.npz",
            camera_intrinsics=view.intrinsics,
            camera_pose=inverse(view.camera_from_world),
            maximum_depth=farthest,
        )
    else:
        bits = np.where(finite, depth / scale, 0).astype(np.float16)
        bits[0, :3] = (
            np.inf,
            np.nan,
            1.0,
        )  # Not finite, twice; the third is outside of the depth mask.
        save(path, bits.view(np.uint16))
        known = finite.copy()
        known[0, 2] = False
        (root / base / "depth_masks").mkdir(exist_ok=True)
        Image.fromarray(known).save(root / base / "depth_masks" / f"{stem}.png")  # One bit.
    viewpoint = {
        "R": rows.tolist(), "T": place.tolist(), "focal_length": focal, "principal_point": point,
    }  # fmt: skip
    if kind == "ndc_isotropic":
        viewpoint["intrinsics_format"] = kind  # The other is the default of a missing field.
    return {
        "sequence_name": name, "frame_number": i, "frame_timestamp": i / 10,
        "image": {"path": f"{base}/images/{stem}.jpg", "size": [height, width]},
        "depth": {
            "path": f"{base}/depths/{stem}.jpg.geometric.png", "scale_adjustment": scale,
            "mask_path": f"{base}/depth_masks/{stem}.png",
        },
        "mask": {"path": f"{base}/masks/{stem}.png", "mass": 100.0},
        "viewpoint": viewpoint, "meta": None,
    }  # fmt: skip


# -------------------------------------------------------------------------------- Tanks & Temples


def write_tanks(root, layout, number, size):
    """Two scenes: one has an image that was not registered, the other more poses than images."""
    written = Written()
    turn = np.array([[0, -1, 0, 4.0], [1, 0, 0, -2], [0, 0, 1, 0.5], [0, 0, 0, 1]])
    turn[:3, :3] *= 2.5  # The scan is 2.5 times as large as the reconstruction.
    for k, scene in enumerate(("Barn", "Church")):
        views = views_of(number, size, seed=k, focal=0.7)
        folder = root / scene
        log = []
        for i, view in enumerate(views):
            is_lost = scene == "Barn" and i == 2
            log.append(f"{i} {-1 if is_lost else i} 0\n")
            log.append(
                matrix_text(np.eye(4) if is_lost else inverse(view.camera_from_world), "%.12f")
            )
            if scene == "Church" and i == number - 1:
                continue  # A pose without an image.
            images = root / "image_sets" / scene if layout == "image_sets" else folder
            save(images / f"{i + 1:06d}.jpg", render(view)[0])
            written.add(scene, i, view)
        beside = root if k == 0 else folder
        save_text(beside / f"{scene}_COLMAP_SfM.log", "".join(log))
        save_text(folder / f"{scene}_trans.txt", matrix_text(turn, "%.18e"))
        points = surface_points(300) @ turn[:3, :3].T + turn[:3, 3]
        save_ply(folder / f"{scene}.ply", points)
        crop = {
            "class_name": "SelectionPolygonVolume", "version_major": 1, "version_minor": 0,
            "orthogonal_axis": "Z", "axis_min": -10.0, "axis_max": 10.0,
            "bounding_polygon": [[-9, -9, 0.0], [9, -9, 0.0], [9, 9, 0.0], [-9, 9, 0.0]],
        }  # fmt: skip
        save_text(folder / f"{scene}.json", json.dumps(crop))
    return written


# ------------------------------------------------------------------------------------------ ETH3D


# k1 k2 p1 p2 k3 k4 sx1 sy1, as a camera of the data set has them.
PRISM = np.array(
    "0.21047 0.21102 -5.36231e-06 0.00051541 -0.158023 0.406856 -8.46499e-05 0.000861313".split(),
    np.float64,
)


def _fisheye(rays):
    """COLMAP's THIN_PRISM_FISHEYE: where rays land on the plane z = 1 of the distorted image."""
    k1, k2, p1, p2, k3, k4, s1, s2 = PRISM
    length = np.linalg.norm(rays, axis=-1)
    u, v = np.moveaxis(rays * (np.arctan(length) / np.maximum(length, 1e-12))[..., None], -1, 0)
    r2 = u * u + v * v
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3 + k4 * r2**4
    x = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + s1 * r2
    y = v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v) + s2 * r2
    return np.stack([x, y], -1)


def _through_fisheye(view):
    """The rays of the pixels of a camera that distorts, by Newton's method with slopes measured."""
    wanted, rays = pixel_rays(view), pixel_rays(view)
    for _ in range(12):
        here, step = _fisheye(rays), 1e-6
        across = (_fisheye(rays + np.array([step, 0])) - here) / step
        down = (_fisheye(rays + np.array([0, step])) - here) / step
        jacobian = np.stack([across, down], -1)
        rays = rays - np.linalg.solve(jacobian, (here - wanted)[..., None])[..., 0]
    return rays


def write_eth3d(root, layout, number, size):
    """A scene with two cameras, listed out of order, and one whose headers have another length."""
    written = Written()
    for k, scene in enumerate(("courtyard", "pipes")):
        folder = root / scene
        views = views_of(number, size, seed=k, focal=0.85)
        names = [f"DSC_{286 + 2 * i:04d}.JPG" for i in range(number)]
        lines = []
        for i, (view, name) in enumerate(zip(views, names, strict=True)):
            which = i % 2 if k == 0 else 0
            if which:
                view = View(
                    camera_from_world=view.camera_from_world,
                    intrinsics=view.intrinsics * [[1.05, 0, 1], [0, 1.05, 1], [0, 0, 1]],
                    size=view.size,
                )
            sub = {
                "original": "dslr_images",
                "undistorted": "dslr_images_undistorted",
                "pi3": "custom_undistorted",
            }[layout]
            rays = _through_fisheye(view) if layout == "original" else None
            colours, depth = render(view, rays)
            save(folder / "images" / sub / name, colours)
            if layout != "undistorted":
                raw = folder / "ground_truth_depth" / sub / name
                raw.parent.mkdir(parents=True, exist_ok=True)
                nothing = np.inf if layout == "original" else 0.0
                raw.write_bytes(
                    np.where(np.isfinite(depth), depth, nothing).astype("<f4").tobytes()
                )
            if layout == "original":
                labels = np.zeros(view.size, np.uint8)
                labels[:4, :5], labels[:4, 5:9] = 1, 2
                save(folder / "masks_for_images" / sub / (name[:-4] + ".png"), labels)
            if layout == "pi3":
                (folder / "custom_undistorted_cam").mkdir(exist_ok=True)
                np.savez(
                    folder / "custom_undistorted_cam" / (name[:-4] + ".npz"),
                    intrinsics=view.intrinsics, extrinsics=view.camera_from_world,
                )  # fmt: skip
            written.add(scene, i, view, None if layout == "undistorted" else view)
            words = [*_quaternion(view.camera_from_world[:3, :3]), *view.camera_from_world[:3, 3]]
            numbers = " ".join(f"{x:.12g}" for x in words)
            lines.append(
                f"{i + 1} {numbers} {which} {sub}/{name}\n"
                + ("" if i % 3 else "12.5 30.25 -1")
                + "\n"
            )
        if layout != "pi3":
            _colmap_text(folder, layout, lines, written.images[scene], two=k == 0)
        matrix = np.array([[1, 0, 0, 1.0], [0, 1, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]])
        save_ply(folder / "dslr_scan_eval" / "scan1.ply", surface_points(200) - matrix[:3, 3])
        project = (
            "<!DOCTYPE MeshLabDocument>\n<MeshLabProject>\n <MeshGroup>\n"
            '  <MLMesh label="scan1.ply" filename="scan1.ply">\n   <MLMatrix44>\n'
            f"{matrix_text(matrix)}</MLMatrix44>\n"
            "  </MLMesh>\n </MeshGroup>\n</MeshLabProject>\n"
        )
        save_text(folder / "dslr_scan_eval" / "scan_alignment.mlp", project)
    return written


def _colmap_text(folder, layout, lines, views, *, two):
    sub = "dslr_calibration_jpg" if layout == "original" else "dslr_calibration_undistorted"
    model, extra = ("THIN_PRISM_FISHEYE", PRISM) if layout == "original" else ("PINHOLE", [])
    cameras = (
        "# Camera list\n#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n# Number of cameras: 2\n"
    )
    for which in range(2 if two else 1):
        view = views[which]
        (fx, _, cx), (_, fy, cy), _ = view.intrinsics
        numbers = " ".join(f"{x:.12g}" for x in (fx, fy, cx, cy, *extra))
        cameras += f"{which} {model} {view.size[1]} {view.size[0]} {numbers}\n"
    header = [
        "# Image list\n",
        "#   IMAGE_ID, QW, ...\n",
        "#   POINTS2D[]\n",
        "# Number of images\n",
    ]
    save_text(folder / sub / "cameras.txt", cameras)
    save_text(
        folder / sub / "images.txt", "".join(header[: 4 if two else 3]) + "".join(lines[::-1])
    )
    save_text(folder / sub / "points3D.txt", "# 3D point list\n")


def _quaternion(rotation):
    """(w, x, y, z)."""
    w = np.sqrt(max(0.0, 1 + np.trace(rotation))) / 2
    x, y, z = (rotation[[2, 0, 1], [1, 2, 0]] - rotation[[1, 2, 0], [2, 0, 1]]) / (4 * w)
    return w, x, y, z


# --------------------------------------------------------------------------------------- 7-Scenes


# Metres; what published depth of the colour camera was made with (nianticlabs/simplerecon fe2d5c2,
# data_scripts/7scenes_preprocessing.py), to four digits.
COLOUR_FROM_DEPTH = np.array(
    [
        [0.999965, 0.0026765, -0.0079041, -0.025559],
        [-0.0027409, 0.999963, -0.0081505, 0.0001011],
        [0.0078820, 0.0081718, 0.999936, 0.0020318],
        [0, 0, 0, 1],
    ]
)


def write_7scenes(root, layout, number, size):
    """Depth of both cameras, for "raw" of the depth camera alone; poses are those of colour."""
    written = Written()
    height, width = size
    for k, (sequence, split) in enumerate((("seq-01", "Train"), ("seq-03", "Test"))):
        for i, pose in enumerate(track(number, seed=k)):
            share = width / 640
            # Published cameras count from pixel centres at whole numbers of a picture of 640 x 480.
            colour = View(
                camera_from_world=pose, size=size,
                intrinsics=camera(525 * share, 525 * share, 320.5 * share, 240.5 * height / 480),
            )  # fmt: skip
            raw = View(
                camera_from_world=inverse(COLOUR_FROM_DEPTH) @ pose, size=size,
                intrinsics=camera(585 * share, 585 * share, width / 2, height / 2),
            )  # fmt: skip
            base = root / "chess" / sequence / f"frame-{i:06d}"
            colours, depth = render(colour)
            save(base.with_suffix(".color.png"), colours)
            values = millimetres(render(raw)[1])
            values[values == 0] = 65535
            values[0, 0] = 0
            save(base.with_suffix(".depth.png"), values)
            if layout != "raw":
                save(base.with_suffix(".depth.proj.png"), millimetres(depth, rounding=np.floor))
            text = (
                matrix_text(inverse(pose), "%.9e", " \t ", "\t ")
                .replace("e+00", "e+000")
                .replace("e-0", "e-00")
            )
            save_text(base.with_suffix(".pose.txt"), text, NEWLINE)
            written.add(f"chess/{sequence}", i, colour, raw if layout == "raw" else colour)
        save_text(root / "chess" / f"{split}Split.txt", f"sequence{int(sequence[-2:])}\n", NEWLINE)
    return written


# ------------------------------------------------------------------------------------------ NRGBD


def write_nrgbd(root, layout, number, size):
    """More than nine frames, a frame without a pose, depth with noise beside the true one."""
    del layout
    written = Written()
    width = size[1]
    for k, scene in enumerate(("breakfast_room", "thin_geometry")):
        folder = root / scene
        share = 554.2562584220408 / 640
        views = views_of(number if k == 0 else 3, size, seed=k, focal=share)
        rows, others = "", ""
        for i, view in enumerate(views):
            colours, depth = render(view)
            save(folder / "images" / f"img{i}.png", colours)
            save(folder / "depth" / f"depth{i}.png", millimetres(depth))
            noisy = depth + np.random.default_rng(i).normal(0, 0.02, depth.shape)
            save(folder / "depth_with_noise" / f"depth{i}.png", millimetres(noisy))
            save(folder / "depth_filtered" / f"depth{i}.png", millimetres(depth))
            # Axes of OpenGL.
            pose = inverse(view.camera_from_world) @ np.diag([1.0, -1, -1, 1])
            if k == 0 and i in (3, 4):
                pose = np.full((4, 4), np.nan if i == 3 else -np.inf)
            rows += matrix_text(pose, "%.8f")
            others += matrix_text(np.eye(4), "%.8f")
            written.add(scene, i, view, view)
        save_text(folder / "poses.txt", rows)
        save_text(folder / "trainval_poses.txt", others)
        save_text(folder / "focal.txt", f"{share * width!r}\n")
    return written


# -------------------------------------------------------------------------------------------- DTU


def write_dtu(root, layout, number, size):
    """Two scans in millimetres; camera files of 29, 30 and 31 words."""
    written = Written()
    for k, scan in enumerate((1, 4)):
        # Other layouts have the same cameras for all scans.
        views = views_of(number, size, seed=k if layout == "mvsnet" else 0, focal=1.2)
        write_view = {"mvsnet": _mvsnet, "training": _training, "views64": _views64}[layout]
        for i, view in enumerate(views):
            written.add(f"scan{scan}", i, view, write_view(root, scan, i, view))
        if layout == "mvsnet":
            pairs = "".join(f"{i}\n1 {(i + 1) % number} 0.5\n" for i in range(number))
            save_text(root / f"scan{scan}" / "pair.txt", f"{number}\n{pairs}")
        points = surface_points(300) * 1000
        save_ply(
            root / "Points" / "stl" / f"stl{scan:03d}_total.ply",
            points,
            np.tile([0, 0, 1.0], (300, 1)),
        )
        _observed(root / "SampleSet" / "MVS Data" / "ObsMask", scan)
    return written


def _dtu_camera(path, view, i):
    """In millimetres; the last line has two, three or four numbers."""
    pose = view.camera_from_world * [[1, 1, 1, 1000]]
    pose[3, 3] = 1
    tail = ["425.0 2.5", "425.0 2.5 192", "425.0 2.5 192 905.0"][i % 3]
    numbers = matrix_text(pose, "%.10g"), matrix_text(view.intrinsics, "%.10g")
    save_text(path, f"extrinsic\n{numbers[0]}\nintrinsic\n{numbers[1]}\n{tail}\n")


def _mvsnet(root, scan, i, view):
    folder, name = root / f"scan{scan}", f"{i:08d}"
    colours, depth = render(view)
    save(folder / "images" / f"{name}.jpg", colours)
    _dtu_camera(folder / "cams" / f"{name}_cam.txt", view, i)
    finite = np.isfinite(depth)
    (folder / "depths").mkdir(exist_ok=True)
    np.save(folder / "depths" / f"{name}.npy", np.where(finite, depth * 1000, 0))
    save(folder / "binary_masks" / f"{name}.png", np.where(finite, 255, 0).astype(np.uint8))
    return view


def _training(root, scan, i, view):
    height, width = view.size
    quarter = View(
        camera_from_world=view.camera_from_world,
        intrinsics=view.intrinsics * [[0.25], [0.25], [1]],
        size=(height // 4, width // 4),
    )
    _dtu_camera(root / "Cameras" / "train" / f"{i:08d}_cam.txt", quarter, i)
    rectified = root / "Rectified" / f"scan{scan}_train"
    for light in (0, 3):
        save(rectified / f"rect_{i + 1:03d}_{light}_r5000.png", render(view)[0] // (4 - light))
    depth = render(quarter)[1]
    depth = np.where(np.isfinite(depth), depth * 1000, 0)
    path = root / "Depths" / f"scan{scan}_train" / f"depth_map_{i:04d}.pfm"
    _save_pfm(path, depth, big=i % 2 == 1)
    seen = np.where(depth > 0, 255, 0).astype(np.uint8)
    save(path.with_name(f"depth_visual_{i:04d}.png"), seen)
    return quarter


def _views64(root, scan, i, view):
    save(root / "scans" / f"scan{scan}" / "image" / f"{i:08d}.png", render(view)[0])
    _dtu_camera(root / "Cameras" / f"{i:08d}_cam.txt", view, i)


def _save_pfm(path, depth, *, big):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n{'' if big else '-'}1.000000\n"
    path.write_bytes(header.encode() + depth[::-1].astype(">f4" if big else "<f4").tobytes())


def _observed(folder, scan):
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[1:, 1:, :] = 1
    box = np.array([[-2000.0, 0, 0], [2000, 3000, 2000]])
    savemat(
        folder / f"ObsMask{scan}_10.mat", {"ObsMask": mask, "BB": box, "Res": 1000.0, "Margin": 10}
    )
    savemat(folder / f"Plane{scan}.mat", {"P": np.array([[0.0], [0], [1], [-5]])})


# ---------------------------------------------------------------------------------------- ScanNet


def write_scannet(root, layout, number, size):
    """Colour twice as large as depth, a lost pose, names without leading zeros."""
    written = Written()
    height, width = size
    for k, scene in enumerate(("scene0707_00", "scene0708_00")):
        frames = []
        for i, pose in enumerate(track(number, seed=k)):
            depth_view = View(
                camera_from_world=pose, size=size,
                intrinsics=camera(0.9 * width, 0.9 * width, width / 2 + 0.25, height / 2 - 0.25),
            )  # fmt: skip
            colour_view = View(
                camera_from_world=pose, size=(2 * height, 2 * width),
                intrinsics=np.diag([2.0, 2, 1]) @ depth_view.intrinsics,
            )  # fmt: skip
            stored = np.full((4, 4), -np.inf) if k == 1 and i == 2 else inverse(pose)
            frames.append((render(colour_view)[0], millimetres(render(depth_view)[1]), stored))
            written.add(scene, i, colour_view, depth_view)
        _scannet_scene(root, layout, scene, frames, colour_view.intrinsics, depth_view.intrinsics)
        save_ply(root / scene / f"{scene}_vh_clean_2.ply", surface_points(100), text=True)
    return written


def _four(intrinsics):
    """4x4, with pixel centres at whole numbers, as ScanNet counts."""
    matrix = np.eye(4)
    matrix[:3, :3] = intrinsics
    matrix[:2, 2] -= 0.5
    return matrix


def _scannet_scene(root, layout, scene, frames, colour, depth):
    folder = root / scene
    colour, depth = _four(colour), _four(depth)
    if layout == "sens":
        folder.mkdir(parents=True, exist_ok=True)
        _write_sens(folder / f"{scene}.sens", frames, colour, depth)
        return
    if layout == "cpp":
        shapes = frames[0][0].shape, frames[0][1].shape
        words = [" ".join(str(x) for x in m.ravel()) for m in (colour, np.eye(4), depth, np.eye(4))]
        names = ("Color", "Depth")
        info = "m_versionNumber = 4\nm_sensorName = StructureSensor\n"
        for name, shape in zip(names, shapes, strict=True):
            info += f"m_{name.lower()}Width = {shape[1]}\nm_{name.lower()}Height = {shape[0]}\n"
        info += "m_depthShift = 1000\n"
        for name, matrix, outer in zip(names, words[::2], words[1::2], strict=True):
            info += f"m_calibration{name}Intrinsic = {matrix} \n"
            info += f"m_calibration{name}Extrinsic = {outer} \n"
        save_text(folder / "_info.txt", info + f"m_frames.size = {len(frames)}\n")
    if layout in ("original", "processed"):
        for name, matrix in (("color", colour), ("depth", depth)):
            save_text(folder / "intrinsic" / f"intrinsic_{name}.txt", matrix_text(matrix, "%.6f"))
            save_text(
                folder / "intrinsic" / f"extrinsic_{name}.txt", matrix_text(np.eye(4), "%.6f")
            )
    poses = ""
    for i, (image, values, pose) in enumerate(frames):
        if layout == "original":
            save(folder / "color" / f"{i}.jpg", image)
            save(folder / "depth" / f"{i}.png", values)
            save_text(folder / "pose" / f"{i}.txt", matrix_text(pose, "%.6f"))
        elif layout == "processed":
            save(folder / "color_90" / f"frame_{i:04d}.jpg", image)
            save(folder / "depth_90" / f"frame_{i:04d}.png", values)
            poses += " ".join(f"{x:.8f}" for x in pose.ravel()) + "\n"
        else:
            base = folder / f"frame-{i:06d}"
            save(base.with_suffix(".color.jpg"), image)
            height, width = values.shape
            header = f"P5\n{width} {height}\n65535\n".encode()
            base.with_suffix(".depth.pgm").write_bytes(header + values.astype(">u2").tobytes())
            save_text(base.with_suffix(".pose.txt"), matrix_text(pose, "%.6f"))
    if layout == "processed":
        save_text(folder / "pose_90.txt", poses)


def _write_sens(path, frames, colour, depth):
    name = b"StructureSensor"
    image, values, _ = frames[0]
    with path.open("wb") as file:
        file.write(struct.pack("<IQ", 4, len(name)) + name)
        for matrix in (colour, np.eye(4), depth, np.eye(4)):
            file.write(matrix.astype("<f4").tobytes())
        file.write(struct.pack("<ii", 2, 1))
        file.write(
            struct.pack("<4I", image.shape[1], image.shape[0], values.shape[1], values.shape[0])
        )
        file.write(struct.pack("<fQ", 1000.0, len(frames)))
        for i, (picture, depths, pose) in enumerate(frames):
            blob = BytesIO()
            Image.fromarray(picture).save(blob, "JPEG", quality=95, subsampling=0)
            packed = zlib.compress(depths.astype("<u2").tobytes())
            file.write(pose.astype("<f4").tobytes())
            file.write(struct.pack("<4Q", 33 * i, 33 * i, len(blob.getvalue()), len(packed)))
            file.write(blob.getvalue() + packed)
        file.write(struct.pack("<Q", 1) + struct.pack("<15d", *range(15)) + struct.pack("<Q", 7))


WRITERS = {
    "re10k": (write_re10k, ("original", "pi3", "cut3r", "pixelsplat")),
    "co3d": (write_co3d, ("original", "vggt", "dust3r")),
    "tanks": (write_tanks, ("original", "image_sets")),
    "eth3d": (write_eth3d, ("original", "undistorted", "pi3")),
    "7scenes": (write_7scenes, ("original", "raw")),
    "nrgbd": (write_nrgbd, ("original",)),
    "dtu": (write_dtu, ("mvsnet", "training", "views64")),
    "scannet": (write_scannet, ("original", "sens", "processed", "cpp")),
}


def write(dataset, root, layout=None, number=12, size=(48, 64)):
    """Writes a data set; what it holds, by sequence and frame.

    Args:
        dataset: a name of WRITERS.
        root: the folder, which is made.
        layout: one of the data set's; None for the first.
        number: of frames in a sequence.
        size: height and width.
    """
    writer, layouts = WRITERS[dataset]
    if layout is not None and layout not in layouts:
        raise ValueError(f"{dataset} has the layouts {', '.join(layouts)}, not {layout}")
    Path(root).mkdir(parents=True, exist_ok=True)
    return writer(Path(root), layout or layouts[0], number, tuple(size))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", choices=WRITERS)
    parser.add_argument("root", type=Path)
    parser.add_argument(
        "--layout", help="; ".join(f"{k}: {', '.join(v[1])}" for k, v in WRITERS.items())
    )
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--size", type=int, nargs=2, default=(48, 64), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    if arguments.layout not in (None, *WRITERS[arguments.dataset][1]):
        parser.error(
            f"--layout: {arguments.dataset} has {', '.join(WRITERS[arguments.dataset][1])}"
        )
    written = write(
        arguments.dataset, arguments.root, arguments.layout, arguments.frames, arguments.size
    )
    for sequence, views in written.images.items():
        print(f"{sequence}: {len(views)} frames")


if __name__ == "__main__":
    main()
