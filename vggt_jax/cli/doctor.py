"""`vggt-jax doctor`."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator

from vggt_jax.cli.printed import Json, print_outcome

# What an optional package is for, and the extra that installs it.
_EXTRAS = {
    "av": ("video", "videos as input"),
    "torch": ("torch", ".pt and .pth checkpoints"),
    "viser": ("view", "the viewer"),
    "pycolmap": ("colmap", "export to COLMAP"),
    "fastapi": ("serve", "a server that keeps a model loaded"),
    "gradio": ("app", "the web page"),
    "open3d": ("mesh", "triangle meshes"),
    "ray": ("ray", "many scenes on the machines of a Ray cluster"),
    "s3fs": ("s3", "scenes and results at s3://"),
    "gcsfs": ("gs", "scenes and results at gs://"),
}
_PACKAGES = ("vggt-jax", "jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "tyro")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Show what device, kernels, versions, extras and models are found, and what will be used.

    vggt-jax doctor
    vggt-jax doctor --json
    """

    json: Json = False

    def run(self) -> None:
        parts = {
            "Versions": versions(),
            "Device": device(),
            "Attention": attention(),
            "Extras": extras(),
            "Models": models(),
        }
        found = {title: list(rows) for title, rows in parts.items()}
        lines = []
        for title, rows in found.items():
            width = max(len(name) for name, _ in rows)
            lines += [title, *(f"  {name:<{width}}  {value}" for name, value in rows)]
        outcome = {
            title.lower(): {name.strip(): value for name, value in rows}
            for title, rows in found.items()
        }
        print_outcome(self, "\n".join(lines), outcome)


def versions() -> Iterator[tuple[str, str]]:
    """Names and versions of Python and the packages that the project needs."""
    yield "python", f"{platform.python_version()} ({sys.executable})"
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "runs from a folder, not installed"


def device() -> Iterator[tuple[str, str]]:
    """The devices of JAX, and what follows from the first."""
    import jax

    from vggt_jax.cli.programs import programs_folder
    from vggt_jax.errors import InputError
    from vggt_jax.host import check_device
    from vggt_jax.layers.precision import Precision
    from vggt_jax.pipeline import memory
    from vggt_jax.pipeline.timing import why_slower

    try:
        check_device()
    except InputError as error:
        yield "none", str(error)
        return
    for device in jax.devices():
        yield f"{device.platform}:{device.id}", device.device_kind
    free = memory.available_memory()
    yield "free memory", "unknown" if free is None else f"{memory.gib(free)} GiB"
    yield "products in", f"{Precision.from_compute_dtype(None).compute_dtype.name} by default"
    yield "compiled programs", f"kept in {programs_folder()}"
    if (missed := why_slower()) is not None:
        yield "slower", missed
    if jax.default_backend() == "cpu" and importlib.util.find_spec("jax_cuda13_plugin") is None:
        yield "GPU support", "not installed; on an NVIDIA GPU: pip install 'vggt-jax[cuda]'"


def attention() -> Iterator[tuple[str, str]]:
    """Which implementations dense and block-sparse attention take here, and why not the others."""
    from pallas_kernels import attention_unsupported_because
    from vggt_jax.layers.attention import dense_obstacles
    from vggt_jax.layers.precision import Precision

    dtype = Precision.from_compute_dtype(None).compute_dtype
    dense = dense_obstacles(head_dim=64, dtype=dtype)
    sparse = attention_unsupported_because(head_dim=64, dtype=dtype) | {"xla": None}
    for kind, obstacles in (("dense", dense), ("block-sparse", sparse)):
        yield kind, next(name for name, why in obstacles.items() if why is None)
    for name, why in (dense | sparse).items():
        yield f"  {name}", "can be used" if why is None else f"not here: {why}"


def extras() -> Iterator[tuple[str, str]]:
    """Which optional packages are there."""
    for name, (extra, use) in _EXTRAS.items():
        if importlib.util.find_spec(name) is None:
            yield name, f"missing, for {use}: pip install 'vggt-jax[{extra}]'"
        else:
            yield name, f"{importlib.metadata.version(name)}, for {use}"


def models() -> Iterator[tuple[str, str]]:
    """Where models are kept, and which ones are there."""
    from huggingface_hub import constants

    from vggt_jax import weights
    from vggt_jax.models.loading import cache_folder

    folder = cache_folder()
    chosen = "from VGGT_JAX_CACHE" if os.environ.get("VGGT_JAX_CACHE") else "see VGGT_JAX_CACHE"
    yield "cache folder", f"{folder} ({chosen})"
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    yield "  converted", ", ".join(name for name in found if name != "programs") or "none yet"
    yield "downloads", constants.HF_HUB_CACHE
    path = weights.small_model_path()
    there = (
        f"small ({path.stat().st_size / 2**20:.0f} MiB)" if path.is_file() else f"missing: {path}"
    )
    yield "default model", there
