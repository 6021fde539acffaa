"""`vggt-jax analyze`."""

import dataclasses
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tqdm
import tyro
from PIL import Image

from vggt_jax.cli.attending import Attending, OptionalInt, OptionalPath, OptionalText
from vggt_jax.cli.generated import Flag, in_dashes, options_of
from vggt_jax.errors import InputError
from vggt_jax.files import output_folder
from vggt_jax.images.files import scene_folder
from vggt_jax.pipeline.options import Options

# Of the options of a scene, those that matter here; attention is written in options of its own.
_TAKEN = ("config", "mode", "size", "fps", "frames", "pattern", "compute_dtype", "memory_check")
# Which figure an option is for, beside those that all take.
_ONLY_FOR = {
    "layer": ("maps",),
    "pair": ("maps",),
    "matches": ("maps",),
    "drop": ("drop",),
    "part": ("drop",),
    "cameras": ("drop",),
    "num_frames": ("runtime",),
    "repeats": ("runtime",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(
    Options,
    take=_TAKEN,
    as_types={
        "config": Path | None,
        "size": int | None,
        "pattern": tyro.conf.UseAppendAction[tuple[str, ...]],
        "compute_dtype": Literal["float32", "bfloat16"] | None,
    },
)
class Analyze(Attending):
    """Draw where attention over all photographs looks, what layers are worth, what takes the time.

    maps: the attention map of two photographs in a layer, the strongest matches between them, and
    attention between all photographs. layers: mean and maximum by layer, of special tokens and
    patches. sparsity: what attention that is not dense leaves out, by layer and head. drop: cameras
    without some layers, from the front, the back, both, the middle. runtime: seconds by part and
    number of frames. Writes pictures and the numbers in them.

        vggt-jax analyze maps kitchen/ --model facebook/VGGT-1B --layer 14 --out maps
        vggt-jax analyze sparsity kitchen/ --sparse-ratio 0.75 --out sparsity
    """

    if TYPE_CHECKING:
        pattern: tuple[str, ...]
        compute_dtype: Literal["float32", "bfloat16"] | None

    figure: Annotated[
        tyro.conf.Positional[Literal["maps", "sparsity", "layers", "drop", "runtime"]],
        tyro.conf.arg(help_behavior_hint=""),
    ]
    """What to draw."""
    sources: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint=""),
    ] = ()
    """A folder, image files in the order to use, or a video."""
    model: OptionalText = None
    """Checkpoint, as `vggt-jax infer` takes it; by default the small model that ships with the
    project."""
    out: Path
    """Folder to write."""
    layer: OptionalInt = None
    """maps: which layer of the trunk, from 0; by default the one with the largest entry between
    patches."""
    pair: tuple[int, int] = (0, 1)
    """maps: which two photographs, from 0."""
    matches: int = 10
    """maps: how many of the largest entries between patches are drawn as arrows."""
    drop: tuple[int, ...] = ()
    """drop: numbers of layers; by default some from 0 to all."""
    part: Literal["block", "attention"] = "block"
    """drop: what of a layer goes, its global block or the attention in it alone."""
    cameras: OptionalPath = None
    """drop: a file of the true cameras, like cameras.json; by default AUC is against the cameras of
    the whole model."""
    num_frames: tuple[int, ...] = ()
    """runtime: numbers of frames; photographs are repeated. By default 1, 2, 4, ... up to as many
    as there are."""
    repeats: int = 3
    """runtime: timed calls of each part."""
    overwrite: Flag = False
    """Replace what an earlier run wrote to the output folder."""

    def run(self) -> None:
        defaults = {x.name: x.default for x in dataclasses.fields(self)}
        for name, figures in _ONLY_FOR.items():
            if self.figure not in figures and getattr(self, name) != defaults[name]:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is for {', '.join(figures)}, not for {self.figure}")
        if self.repeats < 1 or self.matches < 1 or any(x < 1 for x in self.num_frames):
            raise InputError("--repeats, --matches and --num-frames must be at least 1")
        if not self.sources:
            raise InputError("no images given; name a folder, a video or image files")
        try:
            self._run()
        except InputError as error:
            raise InputError(in_dashes(str(error), Analyze)) from error

    def _run(self) -> None:
        from vggt_jax.cli.reconstruct_files import keep_compiled_programs
        from vggt_jax.pipeline.inputs import load, read
        from vggt_jax.pipeline.memory import out_of_memory_is_an_input_error
        from vggt_jax.pipeline.plan import plan_scene

        keep_compiled_programs()
        options = Options(
            **{name: getattr(self, name) for name in _TAKEN},
            model=self.model,
            attention=self.scene_attention(),
            pad_frames=False,
            progress=sys.stderr.isatty(),
        )
        model = load(options)
        inputs = read(self._photographs(), model, options)
        plan = plan_scene(inputs, model, options)
        names = inputs.frames.names or tuple(map(str, range(plan.num_frames)))
        scene = _Scene(model=model, inputs=inputs, plan=plan, names=names, of=self)
        draw = getattr(scene, self.figure)
        writing = output_folder(self.out, overwrite=self.overwrite, inputs=self.sources)
        with writing as folder, out_of_memory_is_an_input_error(plan.num_frames, "a smaller size"):
            written = []
            for name, content in draw():
                (folder / name).write_bytes(content)
                written.append(name)
        print(f"{', '.join(written)} -> {self.out}")

    def _photographs(self) -> Any:
        if len(self.sources) == 1 and self.sources[0].is_dir():
            return scene_folder(self.sources[0], self.pattern).path
        return self.sources[0] if len(self.sources) == 1 else list(self.sources)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
    """Photographs and a model; a method for each figure yields files by name."""

    model: Any
    inputs: Any
    plan: Any
    names: tuple[str, ...]
    of: Analyze

    @property
    def images(self) -> np.ndarray:
        return self.inputs.frames.images

    @property
    def settings(self) -> dict[str, Any]:
        return {"attention": self.plan.attention, "compute_dtype": self.of.compute_dtype}

    def maps(self) -> Iterator[tuple[str, bytes]]:
        from vggt_jax.analysis import attention, figures
        from vggt_jax.trunk.token_layout import TokenLayout

        pair = self.of.pair
        num_frames, depth = self.plan.num_frames, self.model.num_layers
        if len(set(pair)) < 2 or not all(0 <= frame < num_frames for frame in pair):
            raise InputError(f"--pair {pair}: must be two photographs in [0, {num_frames})")
        if self.of.layer is not None and not 0 <= self.of.layer < depth:
            raise InputError(f"--layer {self.of.layer}: must be in [0, {depth})")
        found = attention.observe(self.model, self.images, pair=pair, **self.settings)
        layer = attention.sharpest_layer(found) if self.of.layer is None else self.of.layer
        config = self.model.config
        (height, width), special = self.plan.size, config.num_special_tokens
        layout = TokenLayout.for_images(height, width, config.patch_size, special)
        patch, pair_map = config.patch_size, np.asarray(found.pair_map[layer])
        matches = attention.strongest_matches(pair_map, layout, patch, self.of.matches)
        names = [self.names[frame] for frame in pair]
        between = np.asarray(found.between_frames[layer])
        yield "map.png", _png(figures.draw_map(pair_map, layout, names, layer))
        shown = self.images[list(pair)]
        yield "matches.png", _png(figures.draw_matches(matches, shown, names, layer))
        yield "between_frames.png", _png(figures.draw_between_frames(between, layer))
        arrays = {"map": pair_map, "between_frames": found.between_frames, "layer": layer}
        arrays |= {f"match_{name}": x for name, x in vars(matches).items()}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        yield "maps.npz", file.getvalue()
        yield "maps.json", self._json(layer=layer, pair=names, num_special=layout.num_special,
                                      rows=layout.rows, columns=layout.columns)  # fmt: skip

    def layers(self) -> Iterator[tuple[str, bytes]]:
        from vggt_jax.analysis import attention, figures

        found = attention.observe(self.model, self.images, **self.settings)
        yield "layers.png", _png(figures.draw_layers(found))
        numbers = {
            name: {
                "maximum": _rounded(found.maximum[..., query, key]),
                "mean": _rounded(found.mean[..., query, key]),
            }
            for query, key, name in figures.DIRECTIONS
        }
        yield "layers.json", self._json(by_layer_and_head=numbers)

    def sparsity(self) -> Iterator[tuple[str, bytes]]:
        from vggt_jax.analysis import attention, figures

        stats = attention.attention_stats(self.model, self.images, **self.settings)
        if stats is None:
            raise InputError(
                "attention is dense, which leaves nothing out; give --sparse-ratio, "
                "--cdf-threshold, --num-keys or --attention, and --min-tokens 0 for few photographs"
            )
        what = f"{1 - stats.density.mean():.1%} left out"
        yield "sparsity.png", _png(figures.draw_sparsity(stats, what))
        numbers = {name: _rounded(x) for name, x in vars(stats).items()}
        mean = float(f"{1 - stats.density.mean():.6g}")
        yield "sparsity.json", self._json(sparsity=mean, by_layer_and_head=numbers)

    def drop(self) -> Iterator[tuple[str, bytes]]:
        from vggt_jax.analysis import dropping, figures
        from vggt_jax.pipeline.prior_files import read_priors

        depth, truth = self.model.num_layers, None
        numbers = self.of.drop or tuple(sorted({*range(0, depth, -(-depth // 8)), depth}))
        if wrong := [x for x in numbers if not 0 <= x <= depth]:
            raise InputError(f"--drop {wrong[0]}: must be in [0, {depth}]")
        if self.of.cameras is not None:
            known = read_priors(self.of.cameras, self.inputs.frames, use=("poses",))
            truth = np.asarray(known.camera_from_world)[:, :3]
            if not np.isfinite(truth).all():
                raise InputError(f"{self.of.cameras}: does not have the camera of every photograph")
        with tqdm.tqdm(total=len(numbers) * len(dropping.ORDERS), disable=None) as bar:

            def say(text):
                bar.set_description(text)
                bar.update()

            results = dropping.drop_layers(
                self.model,
                self.images,
                numbers=numbers,
                part=self.of.part,
                truth=truth,
                say=say,
                **self.settings,
            )
        against = "all layers" if truth is None else "the truth"
        yield "drop.png", _png(figures.draw_drop(results, against))
        rows = [
            {"order": x.order, "layers": x.layers, "auc_30": _rounded(x.auc), **x.drift.to_dict()}
            for x in results
        ]
        yield "drop.json", self._json(part=self.of.part, against=against, results=rows)

    def runtime(self) -> Iterator[tuple[str, bytes]]:
        import jax

        from vggt_jax.analysis import figures, runtime

        numbers = self.of.num_frames
        if not numbers:
            powers = (2**i for i in range(self.plan.num_frames.bit_length()))
            numbers = tuple(sorted({*powers, self.plan.num_frames}))
        say = lambda text: print(f"timing {text}", file=sys.stderr)
        found = runtime.time_parts(
            self.model,
            self.images,
            numbers=numbers,
            repeats=self.of.repeats,
            say=say,
            **self.settings,
        )
        height, width = self.plan.size
        what = f"{self._name}, {width}x{height}, {jax.devices()[0].device_kind}"
        yield "runtime.png", _png(figures.draw_runtime(found, what))
        rows = [
            {"frames": x.num_frames, "total": _rounded(x.total)}
            | {name: _rounded(seconds) for name, seconds in x.parts().items()}
            for x in found
        ]
        yield "runtime.json", self._json(seconds=rows, repeats=self.of.repeats)

    @property
    def _name(self) -> str:
        return self.of.model or "the small model"

    def _json(self, **numbers: Any) -> bytes:
        import jax

        import vggt_jax

        height, width = self.plan.size
        about = {
            "figure": self.of.figure,
            "model": self._name,
            "photographs": list(self.names),
            "size": [height, width],
            "attention": repr(self.plan.attention),
            "compute_dtype": self.plan.compute_dtype,
            "vggt_jax": vggt_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        return (json.dumps(about | numbers, indent=1) + "\n").encode()


def _rounded(x: Any) -> Any:
    """As JSON-ready values of five digits; None where there is no number."""
    of_one = lambda value: float(f"{value:.5g}") if np.isfinite(value) else None
    if np.ndim(x) == 0:
        return of_one(x)
    return [_rounded(part) for part in x]


def _png(figure: Any) -> bytes:
    """A file of 256 colours, a third of the size of one of all."""
    drawn, file = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    with Image.open(drawn) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(file, format="PNG", optimize=True)
    return file.getvalue()
