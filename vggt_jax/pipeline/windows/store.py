"""What windows have found, on disk, so that a run that was killed goes on where it was."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS, read_json, replacing
from vggt_jax.images.frames import FrameTransform
from vggt_jax.pipeline.resuming import SETTINGS, check_settings
from vggt_jax.scene.npz import Predictions
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.results import load_reconstruction, made_from, write_reconstruction

_CLOSURES = "closures.json"
Pair = tuple[int, int]


class WindowStore:
    """A folder of windows, each a file of results, and of closures between them.

    Args:
        folder: made if it is missing.
        settings: what the windows depend on, as JSON: options, model, numbers of frames.

    Raises:
        InputError: the folder holds windows of other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
        check_settings(folder, dict(settings))

    @classmethod
    def opened(cls, folder: Path) -> "WindowStore":
        """A folder of windows as it is."""
        store = cls.__new__(cls)
        store.folder = folder
        return store

    def file(self, window: int) -> Path:
        """The file of a window."""
        return self.folder / f"{window:06d}.npz"

    def found(self, window: int, record: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `write` was told of a window; None if it is not there, was made from something else
        or is damaged."""
        if not self.file(window).exists():
            return None
        try:
            noted = made_from(self.file(window))
        except InputError:
            return None
        # As it comes back from JSON.
        same = noted is not None and noted.get("record") == json.loads(json.dumps(record))
        return noted if same else None

    def read(self, window: int) -> Reconstruction:
        """A window, in its own world."""
        return load_reconstruction(self.file(window))

    def noted(self, window: int) -> dict[str, Any]:
        """What `write` was told of a window."""
        return made_from(self.file(window)) or {}

    def array(self, window: int, name: str) -> np.ndarray:
        """A field of a window's reconstruction alone."""
        with Predictions(self.file(window)) as predictions:
            predictions.members([name])
            return predictions.read(name)

    def frames(self, window: int) -> tuple[tuple[str, ...], tuple[FrameTransform, ...]]:
        """Names and transforms of a window's frames."""
        recon = load_reconstruction(self.file(window), memory_map=True)
        return recon.names, recon.transforms

    def write(
        self, window: int, recon: Reconstruction, record: Mapping[str, Any], **noted: Any
    ) -> None:
        """Keeps a window.

        Args:
            record: of the images that it was made from.
            noted: what else to keep, as JSON.
        """
        write_reconstruction(self.file(window), recon, made_from={"record": record} | noted)

    def closures(self) -> dict[Pair, dict[str, Any] | None]:
        """What was found between two windows; None where they do not show the same place."""
        path = self.folder / _CLOSURES
        if not path.exists():
            return {}
        return {(first, second): found for first, second, found in read_json(path)}

    def write_closures(self, found: Mapping[Pair, dict[str, Any] | None]) -> None:
        """Keeps them."""
        rows: Sequence[Any] = [[*pair, value] for pair, value in found.items()]
        with replacing(self.folder / _CLOSURES) as file:
            file.write(json.dumps(rows).encode())

    def remove(self) -> None:
        """Removes what this store wrote, and the folder if nothing else is there."""
        ours = [self.folder / name for name in (SETTINGS, _CLOSURES, RESULTS)]
        ours += [path for path in self.folder.glob("*.npz") if path.stem.isdecimal()]
        for path in ours:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def forget_closures(self) -> None:
        """They are of windows that are no longer there."""
        (self.folder / _CLOSURES).unlink(missing_ok=True)
