"""What the device at hand can run."""

import re

import jax


def compute_capability() -> tuple[int, int] | None:
    """(major, minor) of the default device if it is an NVIDIA GPU, else None."""
    if jax.default_backend() != "gpu":
        return None
    # "9.0" on an H100; GPUs of other makers name their architecture.
    match = re.fullmatch(r"(\d+)\.(\d+)", jax.devices()[0].compute_capability)
    return match and (int(match[1]), int(match[2]))


def is_ampere_or_later() -> bool:
    """Whether the default device is an NVIDIA GPU with bfloat16 and asynchronous copies."""
    capability = compute_capability()
    return capability is not None and capability >= (8, 0)


def triton_unsupported_because(*, interpret: bool = False) -> str | None:
    """Why no Triton kernel can run on the default device; None if kernels can."""
    if interpret or is_ampere_or_later():
        return None
    return f"{jax.default_backend()=} is no NVIDIA GPU from Ampere on"


def is_hopper() -> bool:
    """Whether the default device is an NVIDIA GPU of the Hopper generation: H100, H200."""
    return compute_capability() == (9, 0)


def multiprocessors() -> int:
    """How many multiprocessors the default device has."""
    return jax.devices()[0].core_count


def device_kind() -> str:
    """The device's model, as the tables of tuned settings name it: "NVIDIA H100 80GB HBM3"."""
    return jax.devices()[0].device_kind
