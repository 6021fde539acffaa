"""How a job is done: models that stay loaded, and one after another the steps of `infer`."""

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.images.video import VideoFrames, choose_frames, is_video
from vggt_jax.layers.attention import Dense
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline import inputs as scene_inputs
from vggt_jax.pipeline.memory import out_of_memory_is_an_input_error
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import plan_scene
from vggt_jax.pipeline.run import run
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.serving.jobs import JobOptions, Limits, Say
from vggt_jax.trunk.attention.block_sparse import BlockSparse
from vggt_jax.trunk.attention.sampled import Sampled

SMALL = "small"
"""What clients call the model that ships with the package."""


class ModelRunner:
    """Reconstructs what clients send, with one of the models that are offered.

    Call it from one thread.

    Attributes:
        models: their names, the default first.
    """

    def __init__(
        self, models: Sequence[str] = (SMALL,), *, limits: Limits | None = None, keep: int = 1
    ):
        """Loads nothing yet; see `warm_up`.

        Args:
            keep: models that stay in memory, those that were used last.
        """
        if not models:
            raise InputError("a server needs a model to offer; name one")
        self.models = tuple(models)
        self._limits, self._keep = limits or Limits(), keep
        self._loaded: collections.OrderedDict[str, SceneModel] = collections.OrderedDict()

    def warm_up(self) -> None:
        """Loads the first model.

        Raises:
            vggt_jax.CheckpointError: it cannot be loaded.
        """
        self._model(self.models[0])

    def __call__(self, files: Sequence[Path], options: JobOptions, say: Say) -> Reconstruction:
        """Reconstructs a video, or photographs in their order.

        Raises:
            InputError: they cannot be used, or do not fit into memory.
        """
        say("loading the model")
        model = self._model(options.model)
        images: list[Path] | VideoFrames = list(files)
        alone = files[0] if len(files) == 1 else None
        if alone is not None and is_video(alone):
            say("choosing frames of the video")
            images = choose_frames(alone, fps=options.fps, frames=options.frames)
        num_frames = len(images.names if isinstance(images, VideoFrames) else images)
        most = self._limits.frames if isinstance(images, VideoFrames) else self._limits.files
        if num_frames > most:
            raise InputError(f"{num_frames} frames are more than {most}; take fewer")
        settings = Options(
            model=model,
            attention=attention_named(options.attention),
            size=options.size,
            mode=options.mode,
        )
        say("reading photographs")
        inputs = scene_inputs.read(images, model, settings)
        plan = plan_scene(inputs, model, settings, say=lambda message: None)
        say(f"reconstructing {num_frames} frames")
        with out_of_memory_is_an_input_error(num_frames, "a smaller size"):
            return run(
                inputs,
                model,
                plan,
                settings,
                done=lambda done: say(f"reconstructing {num_frames} frames: {done} done"),
            )

    def _model(self, name: str) -> SceneModel:
        if name not in self.models:
            raise InputError(f"model={name!r} must be one of {', '.join(self.models)}")
        if name not in self._loaded:
            while len(self._loaded) >= self._keep:
                self._loaded.popitem(last=False)
            source = None if name == SMALL else name
            self._loaded[name] = scene_inputs.load(Options(model=source))
        self._loaded.move_to_end(name)
        return self._loaded[name]


def attention_named(text: str) -> Any:
    """What `JobOptions.attention` stands for, as `vggt_jax.Options` takes it.

    Raises:
        InputError: it is none of these.
    """
    kind, _, number = text.partition("=")
    try:
        match kind:
            case "dense" if not number:
                return Dense()
            case "auto" if not number:
                return "auto"
            case "keys":
                return Sampled(num_keys=int(number))
            case "keep":
                return BlockSparse(sparse_ratio=1 - float(number) / 100)
    except ValueError as error:
        raise InputError(f"attention={text!r}: {error}") from error
    raise InputError(f"attention={text!r} must be dense, auto, keys=NUMBER or keep=PERCENT")
