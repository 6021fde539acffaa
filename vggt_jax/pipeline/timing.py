"""How long a reconstruction will take, by what was measured on the device, and why it may take
longer than it had to."""

import functools
import time
from collections.abc import Collection

import jax
import numpy as np

from pallas_kernels import devices, mosaic_gpu_call, tuned
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import ModelConfig
from vggt_jax.models.loading import abstract_model, named_parameters
from vggt_jax.scene.priors import PriorKind
from vggt_jax.trunk.token_layout import TokenLayout

_OPERATIONS_OF_A_PIXEL = 2.5e6  # Of a dense head with 256 channels; on a CPU.
_CHANNELS = 256


def estimate_seconds(
    config: ModelConfig,
    num_frames: int,
    height: int,
    width: int,
    *,
    attention: SceneAttention,
    compute_dtype: np.typing.DTypeLike,
    known: Collection[PriorKind] = (),
) -> float | None:
    """Seconds from images to a reconstruction on the device, without compiling.

    On a GPU the sum of three terms: products of tokens with parameters, attention over all frames,
    and maps of the dense heads, each at the rate of the table of tuned values (`throughput`). That
    table holds what fits docs/benchmarks; a test holds the estimate to those files. On a CPU the
    rates are shares of that of a matrix product, which is measured once, in a tenth of a second.

    Args:
        num_frames: padded ones included.
        known: kinds of priors that the model is told.

    Returns:
        None where nothing was measured: on another device, or in float32 on a GPU.
    """
    work = lambda: count_work(config, num_frames, height, width, attention=attention, known=known)
    if jax.default_backend() == "cpu" and np.dtype(compute_dtype).itemsize == 4:
        operations = sum(count / share for count, share in _shares_on_a_cpu(work()))
        return operations / products_per_second()
    if jax.default_backend() != "gpu" or np.dtype(compute_dtype).itemsize != 2:
        return None
    products, scene_attention, maps = (
        tuned.value(f"throughput.{name}") for name in ("products", "attention", "maps")
    )
    if not products:
        return None
    counted = work()
    return (
        counted["products"] / (1e12 * products)
        + counted["attention"] / (1e12 * scene_attention)
        + counted["maps"] / (1e6 * maps)
    )


def said_duration(seconds: float) -> str:
    """About so long, to the precision that an estimate has: "about 40 s", "about 3 min"."""
    if seconds < 10:
        return f"about {seconds:.1f} s"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 90 * 60:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def why_slower() -> str | None:
    """Why this machine runs slower than it could, and what to do; None where nothing is known."""
    if devices.is_hopper() and not mosaic_gpu_call.is_supported():
        oldest = ".".join(map(str, mosaic_gpu_call.OLDEST_JAX))
        return (
            f"the kernels for this Hopper GPU are off: they need JAX {oldest}, this is "
            f"{jax.__version__}; install Python 3.12 or newer, and vggt-jax[cuda] there"
        )
    return None


@functools.cache
def products_per_second() -> float:
    """Operations a second of a matrix product in float32 on the default device, the best of
    five."""
    size = 1024
    product = jax.jit(lambda x: x @ x)
    x = jax.device_put(np.ones((size, size), np.float32))
    times = []
    for _ in range(6):  # The first compiles.
        start = time.perf_counter()
        jax.block_until_ready(product(x))
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times[1:])


def _shares_on_a_cpu(work: dict[str, float]) -> list[tuple[float, float]]:
    """Operations, and the rate that they reach as a share of that of a large matrix product; maps
    by the operations of a pixel, most of them convolutions from channels to as many. Rough shares:
    by them docs/benchmarks/cpu.jsonl took 0.8 to 1.3 of the estimate, and two small frames 2.5."""
    of_a_pixel = _OPERATIONS_OF_A_PIXEL * (work["channels"] / _CHANNELS) ** 2
    return [
        (work["products"], 0.7),
        (work["attention"], 0.4),
        (of_a_pixel * work["maps"], 0.5),
    ]


def count_work(
    config: ModelConfig,
    num_frames: int,
    height: int,
    width: int,
    *,
    attention: SceneAttention,
    known: Collection[PriorKind] = (),
) -> dict[str, float]:
    """Operations of products and of attention over all frames, pixels of dense heads, and their
    channels."""
    model = abstract_model(config)
    layout = TokenLayout.for_images(height, width, config.patch_size, config.num_special_tokens)
    tokens = num_frames * layout.tokens_per_frame
    of_priors = model.traits.prior_modules
    told = tuple(name for kind, name in of_priors if kind in known)
    silent = tuple(name for _, name in of_priors if name not in told)
    modules = (*model.traits.compute_type_modules, *told)
    parameters = named_parameters(model)
    of_tokens = sum(
        leaf.size
        for name, leaf in parameters.items()
        if name.startswith(modules) and not name.startswith(silent) and name.endswith(".kernel")
    )
    channels = [
        leaf.shape[-2] for name, leaf in parameters.items() if name.endswith("output_conv1.kernel")
    ]
    dim = parameters["global_blocks.attn.proj.kernel"].shape[-1]
    pairs = sum(
        value.num_pairs(
            num_frames=num_frames,
            num_special=layout.num_special,
            num_patches=layout.rows * layout.columns,
        )
        for value in attention.for_scene(
            model.num_layers,
            num_tokens=tokens,
            num_patches=num_frames * layout.rows * layout.columns,
        )
    )
    pairs += model.num_prior_layers(known) * (num_frames * layout.rows * layout.columns) ** 2
    return {
        "products": 2.0 * of_tokens * tokens,
        "attention": 4.0 * dim * pairs,
        "maps": float(num_frames * height * width * model.num_dense_heads),
        "channels": float(max(channels, default=_CHANNELS)),
    }
