"""How long a reconstruction will take, by what was measured on the device."""

from collections.abc import Collection

import jax
import numpy as np

from pallas_kernels import tuned
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.models.base import ModelConfig
from vggt_jax.models.loading import abstract_model, named_parameters
from vggt_jax.scene.priors import PriorKind
from vggt_jax.trunk.token_layout import TokenLayout


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

    The sum of three terms: products of tokens with parameters, attention over all frames, and maps
    of the dense heads, each at the rate of the table of tuned values (`throughput`). That table
    holds what fits docs/benchmarks; a test holds the estimate to those files.

    Args:
        num_frames: padded ones included.
        known: kinds of priors that the model is told.

    Returns:
        None where nothing was measured: on another device, or in float32.
    """
    if jax.default_backend() != "gpu" or np.dtype(compute_dtype).itemsize != 2:
        return None
    products, scene_attention, maps = (
        tuned.value(f"throughput.{name}") for name in ("products", "attention", "maps")
    )
    if not products:
        return None
    work = count_work(config, num_frames, height, width, attention=attention, known=known)
    return (
        work["products"] / (1e12 * products)
        + work["attention"] / (1e12 * scene_attention)
        + work["maps"] / (1e6 * maps)
    )


def count_work(
    config: ModelConfig,
    num_frames: int,
    height: int,
    width: int,
    *,
    attention: SceneAttention,
    known: Collection[PriorKind] = (),
) -> dict[str, float]:
    """Operations of products and of attention over all frames, and pixels of dense heads."""
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
    }
