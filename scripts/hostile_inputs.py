"""Feeds damaged, edited and malicious files to the package, and says what is not refused well.

    python scripts/hostile_inputs.py --number 250

An input is fine where it is used, or refused by a documented exception (`InputError`,
`CheckpointError`) of one line or, where a checkpoint has many problems, a list. It is a finding
where anything else is raised, where it takes more than 20 seconds of a processor or 2 GiB, or waits
for ever, or where code in it has run. Each input is tried in a process forked from one that has
imported everything; the generator is seeded, so that a number stands for an input.
"""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

import vggt_jax
from vggt_jax import CheckpointError, InputError
from vggt_jax.checkpoints.rules import expand
from vggt_jax.images.masks import load_masks
from vggt_jax.models import conversion
from vggt_jax.models.registry import official_keys
from vggt_jax.pipeline.prior_formats import files_of
from vggt_jax.scene import calibration
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import write_reconstruction
from vggt_jax.training.initialization import small_config

_SECONDS, _GIB = 20, 2.0
_KEPT = 2**30  # Bytes of address space beyond which a process is surely wrong: 16 of these.

Try = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Input:
    """A hostile input: what it is, and what is done with it."""

    name: str
    attempt: Try


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Generator:
    """Hostile inputs around good ones, in a folder."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.rng = folder, random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.marker = folder / "executed"
        self.count = 0
        self.photographs = folder / "photographs"
        self.photographs.mkdir()
        for i in range(2):
            pixels = self.numpy.integers(0, 256, (56, 84, 3), np.uint8)
            Image.fromarray(pixels).save(self.photographs / f"{i}.png")
        self.frames = vggt_jax.load_images(self.photographs, size=28)
        shape = self.frames.images.shape[:3]
        recon = Reconstruction(
            images=self.frames.images,
            camera_from_world=np.tile(np.eye(3, 4, dtype=np.float32), (2, 1, 1)),
            intrinsics=np.tile(np.diag([30, 30, 1]).astype(np.float32), (2, 1, 1)),
            world_points=self.numpy.random((*shape, 3), np.float32),
            world_points_confidence=1 + self.numpy.random(shape, np.float32),
            depth=1 + self.numpy.random(shape, np.float32),
            depth_confidence=1 + self.numpy.random(shape, np.float32),
            names=self.frames.names,
            transforms=self.frames.transforms,
        )
        write_reconstruction(folder / "good", recon)
        with np.load(folder / "good" / "predictions.npz") as file:
            self.arrays = dict(file)
        self.config = dataclasses.replace(
            small_config(), depth=1, dpt_layers=(0, 0, 0, 0), vit_depth=1, enable_track=False
        )
        self.tensors = {
            key: self.numpy.normal(size=slot.rule.shape).astype(np.float32)
            for key, slot in expand(official_keys()["vggt"].rules(self.config)).items()
        }
        save_file(self.tensors, folder / "official.safetensors")
        (folder / "official.json").write_text(json.dumps(self.config.to_dict()))
        for name in ("ours", "ours.safetensors"):
            # Threads of Orbax would not survive the forks to come.
            convert = lambda name=name: conversion.convert(
                folder / "official.safetensors", folder / name
            )
            kind, message, *_ = outcome(convert)
            assert kind == "used", message

    def new(self, name: str) -> Path:
        """A path in a folder of its own."""
        self.count += 1
        folder = self.folder / f"{self.count}"
        folder.mkdir()
        return folder / name

    def __iter__(self) -> Iterator[Input]:
        families = [
            self.edited_results(), self.damaged_results(), self.made_up_headers(), self.documents(),
            self.damaged_checkpoints(), self.edited_checkpoints(), self.pickles(), self.images(),
            self.masks(), self.paths(), self.priors(), self.damaged_priors(),
        ]  # fmt: skip
        while families:
            for family in list(families):
                try:
                    yield next(family)
                except StopIteration:
                    families.remove(family)

    # Results

    def _results(self, path: Path) -> Try:
        def attempt():
            recon = vggt_jax.load_reconstruction(path)
            for format in ("ply", "nerfstudio"):
                out = path.parent / f"out.{format}"
                vggt_jax.export_reconstruction(recon, out, format=format, points="head")

        return attempt

    def edited_results(self) -> Iterator[Input]:
        """Arrays of other shapes, types and values."""
        changes: dict[str, Callable[[np.ndarray], object]] = {
            "without": lambda x: None,
            "a scalar": lambda x: np.array(1.0),
            "one row less": lambda x: x[:-1] if x.ndim else x,
            "no rows": lambda x: x[:0] if x.ndim else x,
            "transposed": lambda x: x.T,
            "complex": lambda x: x.astype(complex) if x.dtype.kind in "fui" else x,
            "text": lambda x: x.astype("U5"),
            "other bytes": lambda x: x.astype(x.dtype.newbyteorder()),
            "not finite": lambda x: np.full_like(x, np.nan) if x.dtype.kind == "f" else x,
            "huge": lambda x: np.full_like(x, 3e38) if x.dtype.kind == "f" else x,
            "negative": lambda x: -np.abs(x.astype(np.int64)) if x.dtype.kind in "iu" else -x
            if x.dtype.kind == "f" else x,
            "structured": lambda x: np.zeros(x.shape, [("a", "f4"), ("b", "f4")]),
            "times": lambda x: np.zeros(x.shape, "M8[s]"),
            "more axes": lambda x: x[..., None, None],
            "half": lambda x: x.astype(np.float16) if x.dtype.kind == "f" else x,
            "zeros": np.zeros_like,
        }  # fmt: skip
        pairs = [(name, what) for name in self.arrays for what in changes]
        self.rng.shuffle(pairs)
        for name, what in pairs:
            path = self.new("predictions.npz")
            changed = self.arrays | {name: changes[what](self.arrays[name])}
            arrays = {key: x for key, x in changed.items() if x is not None}
            np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
            yield Input(f"results, {name}: {what}", self._results(path))

    def damaged_results(self) -> Iterator[Input]:
        """Bytes changed, cut off and put in."""
        good = (self.folder / "good" / "predictions.npz").read_bytes()
        while True:
            path = self.new("predictions.npz")
            what = self._damage(path, good)
            yield Input(f"results, {what}", self._results(path))

    def made_up_headers(self) -> Iterator[Input]:
        """Headers that claim what is not there, and members that unpack to much."""
        shapes = ["(10**6, 10**6, 3)", "(-1, 3)", "(2**62, 2**62)", "(2,)" * 400, "(1e9,)", "None"]
        types = ["|u1", "<f8", "|O", "<U999999999", "|V2147483647", "no type", "<c16"]
        for shape in shapes:
            for dtype in types:
                path = self.new("predictions.npz")
                name = self.rng.choice(list(self.arrays))
                text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n"
                head = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()
                self._with_member(path, name, head, 0)
                yield Input(
                    f"results, {name} of shape {shape[:20]} and type {dtype}", self._results(path)
                )
        for mib in (300, 3000, 6000):
            for name in ("images", "names", "schema_version", "bomb"):
                path = self.new("predictions.npz")
                text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({mib << 20},), }}\n"
                head = b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()
                self._with_member(path, name, head, mib)
                yield Input(f"results, {name} unpacks to {mib} MiB", self._results(path))

    def _with_member(self, path: Path, name: str, head: bytes, mib: int) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, x in self.arrays.items():
                if key != name:
                    data = io.BytesIO()
                    np.save(data, x)
                    archive.writestr(f"{key}.npy", data.getvalue())
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head)
                for _ in range(mib):
                    file.write(bytes(2**20))

    def _damage(self, path: Path, good: bytes) -> str:
        kind = self.rng.choice(["flipped", "cut", "doubled", "zeroed", "other bytes", "empty"])
        at = self.rng.randrange(len(good))
        data = bytearray(good)
        if kind == "flipped":
            for _ in range(self.rng.choice([1, 1, 10])):
                data[self.rng.randrange(len(data))] ^= 1 << self.rng.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "doubled":
            data += data[at:]
        elif kind == "zeroed":
            data[at : at + 4096] = bytes(len(data[at : at + 4096]))
        elif kind == "other bytes":
            data = bytearray(self.rng.randbytes(5000))
        else:
            data = bytearray()
        path.write_bytes(data)
        return f"{kind} at {at} of {len(good)}"

    # JSON

    def documents(self) -> Iterator[Input]:
        """JSON nested, long, of other types, with numbers that no float holds."""
        nothing: tuple[object, ...] = (None, [], {}, 3, "x", True, [[]], {"a": {}})
        texts = [
            "[" * 100_000,
            "1" * 5000,
            "{",
            "",
            "\ufeff{}",
            "NaN",
            '{"frames": [' + "1" * 400 + "]}",
        ]
        texts += [json.dumps(x) for x in nothing]
        matrix = [[1, 0, 1], [0, 1, 1], [0, 0, 1]]
        for value in (10**400, "1", None, [], {}, True, 1e308, -1):
            changed = [[value, 0, 1], *matrix[1:]]
            frames = [{"name": f"{i}.png", "intrinsics_original": changed} for i in range(2)]
            texts.append(json.dumps({"frames": frames}))
            frames = [{"name": f"{i}.png", "intrinsics_original": matrix} for i in range(2)]
            texts.append(json.dumps({"frames": frames, "pixel_centre": value}))
        self.rng.shuffle(texts)
        for i, text in enumerate(texts):
            path = self.new("x.json")
            path.write_text(text)
            doors: dict[str, Try] = {
                "intrinsics": lambda path=path: calibration.read_intrinsics(
                    path, self.frames.names
                ),
                "config": lambda path=path: conversion.load_official(
                    self.folder / "official.safetensors", path
                ),
                "index": lambda path=path: vggt_jax.load_model(path.rename(f"{path}.index.json")),
            }
            door = list(doors)[i % 3] if "frames" not in text else "intrinsics"
            yield Input(f"{door}: {text[:40]!r}", doors[door])
        for field, default in self.config.to_dict().items():
            for value in (10**9, -1, 2**70, "x", None, [], 1e300, [10**9] * 4):
                if value == default:
                    continue
                fields = self.config.to_dict() | {field: value}
                yield Input(
                    f"configuration, {field}={str(value)[:20]}",
                    lambda fields=fields: conversion.load_official(
                        self.folder / "official.safetensors", fields
                    ),
                )

    # Checkpoints

    def damaged_checkpoints(self) -> Iterator[Input]:
        """Files of ours and official ones, with bytes changed."""
        while True:
            name = self.rng.choice(["official.safetensors", "ours.safetensors"])
            good = (self.folder / name).read_bytes()
            path = self.new("x.safetensors")
            start = good[: 8 + struct.unpack("<Q", good[:8])[0]]
            if self.rng.random() < 0.5:  # The header, which is more than the values.
                what = "header " + self._damage(path, start)
                path.write_bytes(path.read_bytes() + good[len(start) :])
            else:
                what = self._damage(path, good)
            config = self.folder / "official.json" if name.startswith("official") else None
            yield Input(
                f"{name}, {what}",
                lambda path=path, config=config: vggt_jax.load_model(path, config=config),
            )

    def edited_checkpoints(self) -> Iterator[Input]:
        """Folders of ours with another configuration, or with files that are none."""
        some = next(iter(conversion.native_shapes(self.config.to_dict())))
        fields: dict[str, list[object]] = {
            "files": [["a"], None, {"../../etc/passwd": 3}, {"a" * 5000: 1}, {"x": "y"}, {"x": -1}],
            "empty_parameters": [
                [1], {"x": 3}, {"x": ["junk", [3]]}, {"x": ["float32", [10**6, 10**6]]},
                {"x": ["float32", [0, -1]]}, {some: ["float32", [0]]}, {some: ["float32", [3, 5]]},
                {"x": ["float32", [0] * 100]}, {"x": ["object", [0]]},
            ],
            "config": [[], None, {"depth": 10**9}, {"depth": []}, {"a": 1}],
            "model": ["", "pi3", "none", 3, None, "x" * 10_000],
            "version": [10**30, -1, "1", 1.5, None, True],
            "checksum": [3, None, []],
            "format": ["other", None, 3],
        }  # fmt: skip
        pairs = [(field, value) for field, values in fields.items() for value in values]
        self.rng.shuffle(pairs)
        for field, value in pairs:
            path = self.new("ours")
            shutil.copytree(self.folder / "ours", path)
            document = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps(document | {field: value}))
            yield Input(
                f"ours, {field}={str(value)[:40]}", lambda path=path: vggt_jax.load_model(path)
            )
        for name in ("config.json", "arrays/_METADATA", "arrays/manifest.ocdbt"):
            for kind in ("gone", "a pipe", "a folder", "empty", "zero bytes"):
                path = self.new("ours")
                shutil.copytree(self.folder / "ours", path)
                size = (path / name).stat().st_size
                (path / name).unlink()
                if kind == "a pipe":
                    os.mkfifo(path / name)
                elif kind == "a folder":
                    (path / name).mkdir()
                elif kind != "gone":
                    (path / name).write_bytes(bytes(size) if kind == "zero bytes" else b"")
                yield Input(f"ours, {name}: {kind}", lambda path=path: vggt_jax.load_model(path))

    def pickles(self) -> Iterator[Input]:
        """Pickles that would run code, and archives that unpack to much."""
        config = self.folder / "official.json"
        for suffix in (".pt", ".ckpt", ".bin", ".safetensors", ".npz", ""):
            for protocol in (2, 5):
                path = self.new(f"model{suffix}")
                path.write_bytes(pickle.dumps({"model": Payload(self.marker)}, protocol))
                yield Input(
                    f"a pickle with code as {path.name}",
                    lambda path=path: vggt_jax.load_model(path, config=config),
                )
        for mib in (100, 6000):
            path = self.new("m.pt")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                with archive.open("m/data.pkl", "w", force_zip64=True) as file:
                    file.write(b"\x80\x02")
                    for _ in range(mib):
                        file.write(b"0" * 2**20)
                archive.writestr("m/version", "3\n")
            yield Input(
                f"a pickle of {mib} MiB", lambda path=path: vggt_jax.load_model(path, config=config)
            )
        path = self.new("predictions.npz")
        arrays = self.arrays | {"depth": np.array([Payload(self.marker)], object)}
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
        yield Input("results with code", self._results(path))

    # Images

    def images(self) -> Iterator[Input]:
        """Pictures with bytes changed, and sizes that no file holds."""
        forms = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "PPM")
        while True:
            form = self.rng.choice(forms)
            data = io.BytesIO()
            with Image.open(self.photographs / "0.png") as image:
                image.save(data, form)
            suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(form, form.lower())
            path = self.new(f"0.{suffix}")
            if form == "PNG" and self.rng.random() < 0.3:
                good = bytearray(data.getvalue())
                good[16:24] = struct.pack(">II", *self.rng.choices([0, 1, 2**31 - 1, 60_000], k=2))
                path.write_bytes(good)
                what = "another size"
            else:
                what = self._damage(path, data.getvalue())
            pair = [path, self.photographs / "1.png"]
            yield Input(
                f"{form}, {what}", lambda pair=pair: vggt_jax.load_images(pair, size=28, mode="pad")
            )

    def masks(self) -> Iterator[Input]:
        """Masks that are damaged, missing or of another kind."""
        while True:
            folder = self.new("masks")
            folder.mkdir()
            data = io.BytesIO()
            mode = self.rng.choice(["1", "L", "RGB", "RGBA", "P", "I;16", "F"])
            size = self.rng.choice([(84, 56), (1, 1), (56, 84), (85, 57)])
            Image.new(mode, size).save(data, "TIFF" if mode == "F" else "PNG")
            suffix = "tif" if mode == "F" else "png"
            what = "whole"
            (folder / f"0.{suffix}").write_bytes(data.getvalue())
            if self.rng.random() < 0.6:
                what = self._damage(folder / f"0.{suffix}", data.getvalue())
            if self.rng.random() < 0.8:
                shutil.copy(folder / f"0.{suffix}", folder / f"1.{suffix}")
            yield Input(
                f"masks, {mode} of {size}, {what}",
                lambda folder=folder: load_masks(folder, self.frames),
            )

    # What is known

    def _good_priors(self) -> dict[str, Path]:
        """Good files of every form, in folders of their own."""
        folder, names = self.folder / "known", self.frames.names
        if not folder.exists():
            pose, matrix = np.eye(4), [[80, 0, 42], [0, 80, 28], [0, 0, 1]]
            (folder / "nerfstudio").mkdir(parents=True)
            np.save(folder / "nerfstudio" / "0.npy", np.ones((56, 84), np.float32))
            Image.new("I;16", (84, 56), 1000).save(folder / "nerfstudio" / "1.png")
            both = {"w": 84, "h": 56, "fl_x": 80, "fl_y": 80, "cx": 42, "cy": 28, "k1": 0.1}
            frames = [
                {"file_path": name, "transform_matrix": pose.tolist(), "depth_file_path": depth}
                for name, depth in zip(names, ("0.npy", "1.png"), strict=True)
            ]
            self._write(folder / "nerfstudio" / "transforms.json", both | {"frames": frames})
            frames = [
                {"name": name, "intrinsics_original": matrix, "camera_from_world": pose.tolist()}
                for name in names
            ]
            self._write(folder / "cameras.json", {"frames": frames})
            arrays = {"intrinsics": np.array([matrix] * 2), "poses": np.array([pose] * 2)}
            np.savez(folder / "known.npz", **arrays, depth=np.ones((2, 56, 84), np.float32))
            for form in ("colmap", "text"):
                self._colmap(folder / form, binary=form == "colmap")
        return {
            "transforms.json": folder / "nerfstudio",
            "cameras.json": folder / "cameras.json",
            "known.npz": folder / "known.npz",
            "cameras.bin": folder / "colmap",
            "cameras.txt": folder / "text",
        }

    def _colmap(self, folder: Path, *, binary: bool) -> None:
        import pycolmap  # pyright: ignore[reportMissingImports]  an extra

        folder.mkdir()
        model = pycolmap.Reconstruction()
        for i, name in enumerate(self.frames.names, 1):
            camera = pycolmap.Camera(
                model="OPENCV", width=84, height=56, params=[80, 80, 42, 28, 0.1, 0, 0, 0],
                camera_id=i,
            )  # fmt: skip
            model.add_camera_with_trivial_rig(camera)
            image = pycolmap.Image(name=name, camera_id=i, image_id=i)
            model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
        (model.write_binary if binary else model.write_text)(str(folder))

    @staticmethod
    def _write(path: Path, document: Any) -> None:
        path.write_text(json.dumps(document))

    def _read_priors(self, path: Path) -> Try:
        def attempt():
            files_of(path)
            return vggt_jax.read_priors(path, self.frames)

        return attempt

    def priors(self) -> Iterator[Input]:
        """Values in files of cameras that no camera has, and other files in their places."""
        values: list[Any] = [
            None, True, 0, -1, 10**400, 1e308, float("nan"), float("inf"), "", "x", "0.png", [], {},
            [[]], {"a": 1}, [[1, 0], [0, 1]], [[1e300] * 4] * 3, [[[1]]], "../" * 3000, "a\0b",
            "/dev/zero", "/proc/self/mem",
        ]  # fmt: skip
        pairs = []
        for form in ("transforms.json", "cameras.json"):
            place = self._good_priors()[form]
            document = json.loads((place / form if place.is_dir() else place).read_text())
            keys = [*document, *(f"frames.{key}" for key in document["frames"][0])]
            pairs += [(form, key, value) for key in [*keys, "more"] for value in values]
        self.rng.shuffle(pairs)
        for form, key, value in pairs:
            place = self._good_priors()[form]
            path = self.new("known") / form
            shutil.copytree(place if place.is_dir() else place.parent, path.parent)
            document = json.loads(path.read_text())
            field = key.removeprefix("frames.")
            (document["frames"][1] if field != key else document)[field] = value
            self._write(path, document)
            yield Input(f"{form}, {key}={str(value)[:30]}", self._read_priors(path))

    def damaged_priors(self) -> Iterator[Input]:
        """Files of every form, and of what they name, cut, changed, gone or of another kind."""
        while True:
            form, place = self.rng.choice([*self._good_priors().items()])
            known = self.new("known")
            shutil.copytree(place if place.is_dir() else place.parent, known)
            path = known if place.is_dir() else known / form
            files = [x for x in known.iterdir() if x.is_file()] if place.is_dir() else [path]
            file = self.rng.choice(sorted(files))
            kind = self.rng.choice(["damaged"] * 6 + ["gone", "a pipe", "a folder", "a loop"])
            what = f"{file.name}: {kind}"
            if kind == "damaged":
                what += f", {self._damage(file, file.read_bytes())}"
            else:
                file.unlink()
                if kind == "a pipe":
                    os.mkfifo(file)
                elif kind == "a folder":
                    file.mkdir()
                elif kind == "a loop":
                    file.symlink_to(file.name)
            yield Input(f"known by {form}, {what}", self._read_priors(path))

    # Paths

    def paths(self) -> Iterator[Input]:
        """Names that no system takes, and places that are no files."""
        pipe = self.new("pipe")
        os.mkfifo(pipe)
        loop = self.new("loop")
        loop.symlink_to(loop)
        names = [
            "",
            "a\0b",
            "a" * 300,
            "a/" * 3000,
            str(pipe),
            str(loop),
            "/dev/zero",
            "/proc/self/mem",
        ]
        names += ["/dev/full", "/", "\udcff", "a\nb", "-", "~", "/proc/1/fd/0", str(self.folder)]
        recon = vggt_jax.load_reconstruction(self.folder / "good")
        for name in names:
            doors: dict[str, Try] = {
                "results": lambda name=name: vggt_jax.load_reconstruction(name),
                "model": lambda name=name: vggt_jax.load_model(name),
                "images": lambda name=name: vggt_jax.load_images(name),
                "export": lambda name=name: vggt_jax.export_reconstruction(
                    recon, name, format="ply"
                ),
                "intrinsics": lambda name=name: calibration.read_intrinsics(name, ("a",)),
                "priors": lambda name=name: vggt_jax.read_priors(name, self.frames),
                "convert": lambda name=name: conversion.convert(
                    self.folder / "official.safetensors", name
                ),
            }
            for door, attempt in doors.items():
                if (door, name) not in [("export", "\udcff"), ("export", "-"), ("export", "~")]:
                    yield Input(f"{door} at {name[:30]!r}", attempt)


def outcome(attempt: Try) -> tuple[str, str, float, float]:
    """Tries an input in a process of its own.

    Returns:
        "used", "refused" or what is wrong; the message; seconds of a processor; and GiB more than
        before.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        resource.setrlimit(resource.RLIMIT_AS, (24 * _KEPT, 24 * _KEPT))
        signal.alarm(10 * _SECONDS)  # Other programs may use the processors.
        kind, message = "used", ""
        try:
            attempt()
        except (InputError, CheckpointError) as error:
            kind, message = "refused", str(error)
            if not message or "\0" in message or len(message.splitlines()[0]) > 2000:
                kind = "a poor message"
        except BaseException:  # noqa: BLE001  what this program looks for
            kind, message = "a traceback", traceback.format_exc()
        os.write(writing, json.dumps([kind, message[-1500:]]).encode())
        os._exit(0)
    os.close(writing)
    said = b""
    while part := os.read(reading, 65536):
        said += part
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    seconds = usage.ru_utime + usage.ru_stime
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gib = max(0, usage.ru_maxrss - before) / 2**20
    kind, message = json.loads(said) if said else (f"ended by {status}", "")
    if seconds > _SECONDS:
        kind = "too slow"
    elif gib > _GIB:
        kind = "too much memory"
    return kind, message, seconds, gib


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Feeds hostile inputs to the package, and says what is not refused well."""

    number: int = 250
    seed: int = 0
    verbose: bool = False
    """Say what became of each."""


def main() -> int:
    """Runs the command line and returns its exit code: 1 where there are findings."""
    arguments = tyro.cli(Arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with contextlib.suppress(ModuleNotFoundError):  # Takes seconds, which are not the inputs'.
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]  an extra
    found: Counter[str] = Counter()
    slowest, largest = (0.0, ""), (0.0, "")
    with tempfile.TemporaryDirectory(prefix="hostile_") as folder:
        os.chdir(folder)
        generator = Generator(Path(folder), arguments.seed)
        for number, one in enumerate(generator, 1):
            kind, message, seconds, gib = outcome(one.attempt)
            if generator.marker.exists():
                kind = "code was run"
                generator.marker.rmdir()
            found[kind] += 1
            slowest, largest = max(slowest, (seconds, one.name)), max(largest, (gib, one.name))
            if kind not in ("used", "refused") or arguments.verbose:
                print(f"{number}: {one.name}: {kind}: {message}", flush=True)
            if number == arguments.number:
                break
    print(", ".join(f"{count} {kind}" for kind, count in found.most_common()))
    print(f"slowest {slowest[0]:.1f} s ({slowest[1]}), largest {largest[0]:.2f} GiB ({largest[1]})")
    return 1 if set(found) - {"used", "refused"} else 0


if __name__ == "__main__":
    sys.exit(main())
