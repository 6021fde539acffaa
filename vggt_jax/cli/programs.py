"""Where compiled programs are kept from one command to the next."""

import hashlib
import platform
from pathlib import Path

import jax

from vggt_jax.models.loading import cache_folder

_CPUINFO = Path("/proc/cpuinfo")


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, unless the user chose a place."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(programs_folder()))


def programs_folder() -> Path:
    """The folder of compiled programs: those of a CPU, which another may not be able to run, are
    apart for each kind of CPU, since a home folder may be shared by machines."""
    folder = cache_folder() / "programs"
    return folder if jax.default_backend() == "gpu" else folder / f"cpu-{_kind_of_cpu()}"


def _kind_of_cpu() -> str:
    """A hash of the CPU's instructions as far as the system tells them."""
    told = [platform.machine(), platform.processor()]
    if _CPUINFO.is_file():
        lines = _CPUINFO.read_text(errors="replace").splitlines()
        told += [x for x in lines if x.startswith(("model name", "flags", "Features"))][:2]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]
