"""Everything that a training run can be asked for."""

import dataclasses
import math
import pathlib
from typing import Literal

from vggt_jax.errors import InputError
from vggt_jax.training.losses import LossWeights
from vggt_jax.training.optimizer import OptimizerSettings
from vggt_jax.training.predict import PARTS, Execution
from vggt_jax.training.variants import DEFAULT_VARIANTS, Variant

# What may differ between a run and its continuation: nothing that a past step depended on.
FREE_ON_RESUME = (
    "steps",
    "max_minutes",
    "fit_to_minutes",
    "save_minutes",
    "keep",
    "validate_every",
    "validation_batches",
    "validation_variant",
    "log_every",
    "export",
    "compilation_cache",
    "out",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Train VGGT on scenes that are rendered on the way, or fine-tune a checkpoint on them.

    OUT gets checkpoints/ (the whole state), train.jsonl (a line for every dispatch of steps and for
    every validation), settings.json and model.safetensors (the average of the weights). The same
    command again goes on from the newest checkpoint. Ctrl-C and SIGTERM save first.
    """

    out: pathlib.Path
    """Folder of the run; one that exists is continued."""
    steps: int = 8000
    """Steps in all, on which the learning rate depends; rounded up to whole dispatches. May be
    changed when a run goes on: the rate then follows the new schedule from there."""
    max_minutes: float | None = None
    """Stop in time to have saved and exported after this many minutes since the start of the
    command, compilation included."""
    fit_to_minutes: bool = False
    """Let the schedule of the learning rate end with max-minutes: after the first dispatch `steps`
    is what fits by the speed so far. Such a run is not repeatable bit for bit and cannot be
    continued; --init goes on from its weights, with another --seed for other scenes."""
    config: pathlib.Path | None = None
    """JSON file with sizes of the model, the fields of VGGTConfig; by default
    `small_config`."""
    init: str | None = None
    """Fine-tune this checkpoint (ours, an official file, or a hub name such as facebook/VGGT-1B)
    instead of starting from random weights."""
    world: Literal["plain", "wide"] = "plain"
    """Which scenes: wide has crowded ones, several lamps, cameras as people hold them, and pictures
    as cameras store them."""
    textures: pathlib.Path | None = None
    """Folder of pictures of surfaces, or of .tar files of them (scripts/pack_textures.py), for the
    wide world; every tenth is kept for validation."""
    photographs: pathlib.Path | None = None
    """File of real photographs with known cameras (scripts/pack_photographs.py), from which some
    scenes of every batch are taken."""
    photographs_every: int = 4
    """Of so many scenes of a batch one is of photographs, if there are any."""
    freeze: tuple[str, ...] = ()
    """Beginnings of names of parameters that do not learn, such as encoder. or camera_head."""
    seed: int = 0
    """Of weights, scenes and variants."""
    variants: tuple[str, ...] = DEFAULT_VARIANTS
    """Shapes of batches, SCENESxFRAMES@HEIGHTxWIDTH:WEIGHT; each dispatch takes one at random by
    weight. Each is compiled once. SCENES may be ?, see pixels-per-step."""
    pixels_per_step: int | None = None
    """Pixels of a batch, for variants whose number of scenes is ?: as many as fit, in multiples of
    4, or of 8 with photographs. 12,900,000 are 32 scenes of 8 frames of 224x224."""
    steps_per_dispatch: int = 10
    """Steps in one program, between which Python does nothing."""
    render_at_once: int = 8
    """Scenes that a device renders at a time; fewer take less memory. 0 for all."""
    validate_every: int = 500
    """Steps between validations of the average of the weights; 0 for none."""
    validation_variant: str = "16x8@224x224"
    """Shape of a batch in validation."""
    validation_batches: int = 8
    """Batches of a validation, always of the same scenes."""
    save_minutes: float = 5.0
    """Minutes between checkpoints."""
    keep: int = 2
    """Checkpoints to keep."""
    log_every: int = 50
    """Steps between lines on the console; the file has one for every dispatch."""
    export: pathlib.Path | None = None
    """Where to write the average of the weights, kernels in bfloat16, whenever the command ends; by
    default OUT/model.safetensors."""
    compilation_cache: pathlib.Path | None = None
    """Folder that keeps compiled programs for the next start."""
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    loss: LossWeights = dataclasses.field(default_factory=LossWeights)
    execution: Execution = dataclasses.field(default_factory=Execution)

    def __post_init__(self):
        for name in ("steps", "steps_per_dispatch", "keep", "log_every", "validation_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, and must be at least 1")
        for name in ("validate_every", "render_at_once"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}, and must not be negative")
        if self.fit_to_minutes and self.max_minutes is None:
            raise InputError("fit-to-minutes needs max-minutes")
        if not self.variants:
            raise InputError("variants: at least one is needed")
        if unknown := set(self.execution.recompute) - set(PARTS):
            raise InputError(f"recompute: {sorted(unknown)} unknown; known are {', '.join(PARTS)}")
        if self.textures is not None and self.world != "wide":
            raise InputError("textures: only the wide world has pictures on its surfaces")
        if self.photographs_every < 2:
            raise InputError(
                f"photographs_every is {self.photographs_every}, and must be at least 2: there is "
                "dense depth in rendered scenes alone"
            )
        if self.init is not None and self.config is not None:
            raise InputError("config: a checkpoint given by init has its own; leave one out")
        _ = self.batch_variants, Variant.parse(self.validation_variant)

    @property
    def batch_variants(self) -> tuple[Variant, ...]:
        """The shapes of batches."""
        # Groups with one scene of photographs each, on one or two devices.
        multiple = 4 if self.photographs is None else math.lcm(4, 2 * self.photographs_every)
        return tuple(Variant.parse(text, self.pixels_per_step, multiple) for text in self.variants)

    @property
    def num_dispatches(self) -> int:
        return -(-self.steps // self.steps_per_dispatch)

    @property
    def total_steps(self) -> int:
        return self.num_dispatches * self.steps_per_dispatch

    def to_dict(self) -> dict:
        """JSON-ready values."""

        def plain(value):
            if isinstance(value, dict):
                return {key: plain(x) for key, x in value.items()}
            if isinstance(value, tuple | list):
                return [plain(x) for x in value]
            return str(value) if isinstance(value, pathlib.Path) else value

        return {name: plain(value) for name, value in dataclasses.asdict(self).items()}

    def differences(self, earlier: dict) -> list[str]:
        """How these settings differ from those that a run began with, where that matters."""
        # A run from before a setting existed had its default.
        mine, earlier = self.to_dict(), TrainSettings(out=self.out).to_dict() | earlier
        names = [name for name in mine if name not in FREE_ON_RESUME]
        return [
            f"{name}: {earlier[name]!r} before, {mine[name]!r} now"
            for name in names
            if earlier[name] != mine[name]
        ]
