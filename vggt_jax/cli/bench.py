"""`vggt-jax bench`."""

import dataclasses
import functools
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import tyro

from vggt_jax.cli.attending import ComputeType, OptionalFloat, OptionalInt, chosen_attention
from vggt_jax.errors import InputError
from vggt_jax.models.registry import families

if TYPE_CHECKING:
    Architecture = str
else:
    Architecture = tyro.extras.literal_type_from_choices(families())

# Width and heads of the vision transformers of these names; VGGT-1B and Pi3 are large.
_WIDTHS = {"small": (384, 6), "base": (768, 12), "large": (1024, 16)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Time a model with random weights on this machine, with dense attention and others.

    Prints a line for each number of frames: seconds of a reconstruction (median of the repeats, the
    compilation before them apart) and memory as compiled.

        vggt-jax bench --frames 10 50 --num-keys 8192 --sparse-ratio 0.75
    """

    architecture: Architecture = "vggt"
    """Which model."""
    width: Literal["small", "base", "large"] = "large"
    """Of its transformers: 384, 768 or 1024 channels, the last as released."""
    frames: tuple[int, ...] = (2, 10)
    """Numbers of frames."""
    size: tuple[int, int] = (518, 518)
    """Height and width of a frame, multiples of 14."""
    num_keys: OptionalInt = None
    """Also time attention to a sample of so many patches."""
    sparse_ratio: OptionalFloat = None
    """Also time block-sparse attention that leaves out this share of the blocks, in [0, 1]."""
    compute_dtype: ComputeType = None
    """Of matrix products; by default bfloat16 on a GPU and float32 elsewhere."""
    repeats: int = 3
    """Timed calls of each case."""
    memory_check: bool = True
    """Refuse to start if the estimate exceeds the free memory."""

    def run(self) -> None:
        if not self.frames or min(self.frames) < 1 or self.repeats < 1:
            raise InputError(
                f"--frames {self.frames} and --repeats {self.repeats} must be positive"
            )
        if any(side < 14 or side % 14 for side in self.size):
            raise InputError(f"--size {self.size} must be multiples of 14, such as 518 518")
        choose = functools.partial(chosen_attention, min_tokens=0)
        attentions = {"dense": choose(None, None, None, None)}
        if self.num_keys is not None:
            attentions[f"{self.num_keys} keys"] = choose(None, self.num_keys, None, None)
        if self.sparse_ratio is not None:
            attentions[f"sparse {self.sparse_ratio:g}"] = choose(
                None, None, self.sparse_ratio, None
            )
        self._run(attentions)

    def _run(self, attentions: dict[str, Any]) -> None:
        import jax
        import numpy as np

        from vggt_jax.pipeline import memory

        model = random_model(self.architecture, self.width, self.compute_dtype)
        weights = memory.gib(memory.weight_bytes(model))
        device = jax.devices()[0].device_kind
        print(
            f"{self.architecture}, {self.width}: random weights of {weights} GiB on {device}, "
            f"frames of {self.size[1]}x{self.size[0]}"
        )
        shapes = [(num_frames, *self.size, 3) for num_frames in self.frames]
        for shape in shapes:
            # Dense attention takes the most. What is timed is one program, maps included.
            check = memory.check_memory(
                model, shape, compute_dtype=self.compute_dtype, attention=attentions["dense"]
            )
            print(f"memory: {check}", file=sys.stderr)
            if self.memory_check and check.shortage:
                raise InputError(f"{check.shortage}: use fewer, or --no-memory-check")
        titles = ("frames", "attention", "seconds", "frames/s", "compiling", "GiB")
        print(_row(titles))
        rng = np.random.default_rng(0)
        for shape in shapes:
            num_frames, images = shape[0], rng.integers(0, 256, shape, np.uint8)
            for name, attention in attentions.items():
                compiling, seconds, held = self._time(model, images, attention)
                rate = f"{num_frames / seconds:.2f}"
                print(_row((num_frames, name, f"{seconds:.3f}", rate, f"{compiling:.1f}", held)),
                      flush=True)  # fmt: skip

    def _time(self, model: Any, images: Any, attention: Any) -> tuple[float, float, str]:
        import jax

        from vggt_jax.pipeline import memory
        from vggt_jax.pipeline.reconstruct import compile_reconstruct

        inputs = {"images": images}
        start = time.perf_counter()
        compiled = compile_reconstruct(
            model, inputs, attention=attention, compute_dtype=self.compute_dtype
        )
        compiling = time.perf_counter() - start
        times = []
        for _ in range(self.repeats + 1):  # The first call warms up.
            start = time.perf_counter()
            jax.block_until_ready(compiled(model, **jax.device_put(inputs)))
            times.append(time.perf_counter() - start)
        analysis = compiled.memory_analysis()
        held = "unknown"
        if analysis is not None:
            held = memory.gib(
                analysis.argument_size_in_bytes
                + analysis.output_size_in_bytes
                + analysis.temp_size_in_bytes
            )
        return compiling, statistics.median(times[1:]), held


def random_model(
    architecture: str,
    width: Literal["small", "base", "large"],
    compute_dtype: Literal["float32", "bfloat16"] | None,
) -> Any:
    """A model of this width with random weights, stored as `infer` stores them."""
    import jax.numpy as jnp
    import numpy as np

    from vggt_jax.layers.precision import Precision
    from vggt_jax.models.loading import (
        abstract_model,
        named_parameters,
        with_dtype,
        with_parameters,
    )

    model = abstract_model(families()[architecture].config.of_width(*_WIDTHS[width]))
    # A few numbers, repeated: drawing a billion would take longer than what is timed.
    noise = 0.02 * np.random.default_rng(0).normal(size=2**20).astype(np.float32)

    def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith((".scale", "image_std")):
            return np.ones(shape, np.float32)
        if name.endswith((".ls1", ".ls2")):
            return np.full(shape, 0.1, np.float32)
        return np.resize(noise, shape)

    shapes = {name: leaf.shape for name, leaf in named_parameters(model).items()}
    model = with_parameters(model, {name: fill(name, shape) for name, shape in shapes.items()})
    is_half = Precision.from_compute_dtype(compute_dtype).compute_dtype == jnp.bfloat16
    return with_dtype(model, jnp.bfloat16) if is_half else model


def _row(cells: tuple[Any, ...]) -> str:
    return "".join(f"{cell!s:>12}" for cell in cells)
