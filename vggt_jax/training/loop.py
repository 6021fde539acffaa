"""The run around the steps: compiling, saving, validating, logging, stopping in time."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vggt_jax.errors import InputError
from vggt_jax.files import Claim, checked_path, replacing
from vggt_jax.models.base import SceneModel
from vggt_jax.models.loading import (
    SomeModel,
    load_model,
    named_parameters,
    save_model,
)
from vggt_jax.models.vggt.config import VGGTConfig
from vggt_jax.models.vggt.model import VGGT
from vggt_jax.training.checkpoints import Checkpoints
from vggt_jax.training.initialization import abstract_vggt, initial_model, small_config
from vggt_jax.training.normalization import PIXEL_CENTRE
from vggt_jax.training.optimizer import make_optimizer
from vggt_jax.training.scenes import read_sources, scenes_of
from vggt_jax.training.settings import TrainSettings
from vggt_jax.training.state import TrainState, initial_state, with_named
from vggt_jax.training.step import AXIS, Recipe, Render, make_steps, make_validation
from vggt_jax.training.variants import Variant, variant_of

_VALIDATION_KEY = 2**31 - 1  # folded into the seed: no step has this number
_LOG = "train.jsonl"
_SECONDS_TO_END = 20.0  # for the last checkpoint and the export


def train(
    settings: TrainSettings,
    *,
    render: Render | None = None,
    render_validation: Render | None = None,
    say: Callable[[str], None] = print,
) -> TrainState:
    """Trains until steps are done, time is up, or a signal asks to stop; then saves and exports.

    Args:
        render, render_validation: scenes from one key each; by default the synthetic world's
            "train" and "validation".
        say: takes the lines for the console.

    Returns:
        The state at the end.

    Raises:
        InputError: settings do not fit the model, the devices, or the run that is there, or another
            process is training there.
    """
    start = time.monotonic()
    if settings.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(settings.compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 5.0)
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    replicated = NamedSharding(mesh, PartitionSpec())
    variants = settings.batch_variants
    validation_variant = Variant.parse(settings.validation_variant)

    out = checked_path(settings.out, "folder of the run")
    out.mkdir(parents=True, exist_ok=True)
    with (
        Claim.of(out.resolve()),
        Checkpoints(settings.out / "checkpoints", keep=settings.keep) as checkpoints,
    ):
        latest = checkpoints.latest()
        if latest is not None and settings.fit_to_minutes:
            raise InputError(
                f"{settings.out} holds a run, and one that is fitted to its minutes cannot go on; "
                f"start another one from its weights: --init {settings.out / 'model.safetensors'}"
            )
        if latest is not None:
            _check_same_run(settings, checkpoints.document(latest)["settings"], say)
        model = _first_model(settings, only_shapes=latest is not None)
        group = settings.photographs_every if settings.photographs is not None else 1
        for variant in (*variants, validation_variant):
            variant.check(
                patch_size=model.config.patch_size,
                num_special=model.config.num_special_tokens,
                num_devices=mesh.size,
                group=1 if variant is validation_variant else group,
            )
        _check_frozen(settings.freeze, model)
        abstract = jax.eval_shape(lambda: model)
        optimizer = make_optimizer(settings.optimizer)
        recipe = lambda render: Recipe(
            model=abstract,
            render=render,
            optimizer=optimizer,
            settings=settings.optimizer,
            weights=settings.loss,
            execution=settings.execution,
            frozen=settings.freeze,
        )
        shapes = jax.eval_shape(lambda: initial_state(abstract_to_zeros(abstract), optimizer))
        if latest is None:
            # Compiled as one: hundreds of small arrays one by one take longer.
            begin = jax.jit(lambda model: initial_state(model, optimizer), out_shardings=replicated)
            state = begin(model)
        else:
            state = checkpoints.restore(latest, shapes, replicated)
            say(f"going on after step {latest} of {settings.total_steps}")
        del model

        training = make_steps_of_variants(
            recipe(render or scenes_of(settings, "train")), variants, settings, mesh
        )
        validation = make_validation(
            recipe(render_validation or scenes_of(settings, "validation")),
            validation_variant,
            num_batches=settings.validation_batches,
            mesh=mesh,
        )
        key = jax.jit(lambda: jax.random.key(settings.seed), out_shardings=replicated)()
        # Scenes of the caller's own need no more than their keys.
        given = {"train": render, "validation": render_validation}
        sources = {
            part: () if given[part] else (jax.device_put(data, replicated),)
            for part, data in read_sources(settings).items()
        }
        put = lambda number: jax.device_put(np.int32(number), replicated)
        programs: dict[str, Callable] = {
            str(variant): lambda fn=fn: fn.lower(
                state, key, put(settings.total_steps), *sources["train"]
            ).compile()
            for variant, fn in training.items()
        }
        if settings.validate_every:
            programs["validation"] = lambda: validation.lower(
                state.ema, key, *sources["validation"]
            ).compile()
        with _partitioner_that_works(settings):
            compiled = compile_all(programs, say)
        with replacing(settings.out / "settings.json") as file:
            file.write(json.dumps(settings.to_dict(), indent=2).encode() + b"\n")
        forget_later_lines(settings.out / _LOG, -1 if latest is None else latest)
        run = _Run(
            settings, variants, compiled, sources, checkpoints, abstract, key, put, start, say
        )
        with _SignalsAskToStop() as stop:
            return run(state, stop)


@contextlib.contextmanager
def _partitioner_that_works(settings: TrainSettings) -> Iterator[None]:
    """JAX 0.11.2 crashes while it compiles the wide world for two GPUs, but not with the older
    partitioner, where there is that choice."""
    name = "jax_use_shardy_partitioner"
    is_needed = settings.world == "wide" and jax.device_count() > 1
    if not is_needed or jax.default_backend() != "gpu" or name not in jax.config.values:
        yield
        return
    before = jax.config.values[name]
    jax.config.update(name, False)
    try:
        yield
    finally:
        jax.config.update(name, before)


def make_steps_of_variants(recipe, variants, settings, mesh) -> dict[Variant, jax.stages.Wrapped]:
    """The jitted steps of every variant."""
    return {
        variant: make_steps(recipe, variant, num_steps=settings.steps_per_dispatch, mesh=mesh)
        for variant in variants
    }


def abstract_to_zeros(model: SomeModel) -> SomeModel:
    """A model of zeros, under `jax.eval_shape`, from one of shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), model)


def compile_all(programs: dict[str, Callable], say: Callable[[str], None]) -> dict[str, Callable]:
    """Compiles programs one after the other and says how long each took.

    Not at the same time: XLA tries kernels out while it compiles, and two compilations that do so
    on one GPU may wait for each other for ever (seen with JAX 0.11.2 on H100 and H200).
    """
    compiled = {}
    for name, compile_one in programs.items():
        begin = time.monotonic()
        compiled[name] = program = compile_one()
        memory = program.memory_analysis()
        size = "" if memory is None else f", {memory.temp_size_in_bytes / 2**30:.1f} GiB temporary"
        say(f"compiled {name} in {time.monotonic() - begin:.0f} s{size}")
    return compiled


class _Run:
    """The loop over dispatches. Results of one are read after the next has been sent off, so that
    the device never waits for Python."""

    def __init__(
        self, settings, variants, programs, sources, checkpoints, model, key, put, start, say
    ):
        self.settings, self.variants, self.programs = settings, variants, programs
        self.sources = sources
        self.checkpoints, self.model, self.key, self.put = checkpoints, model, key, put
        self.start, self.say = start, say
        self.log_file = settings.out / _LOG
        self.slowest = 0.0  # seconds of a dispatch
        self.last_validation = 0.0  # its seconds
        self.reported: tuple[int, float] | None = None  # the last step known to be done, and when

    def __call__(self, state: TrainState, stop: threading.Event) -> TrainState:
        settings, per = self.settings, self.settings.steps_per_dispatch
        first = int(jax.device_get(state.step))
        dispatch, pending = first // per, None
        saved = time.monotonic()
        if first == 0 and settings.validate_every:
            self.validate(state, 0)
        began = self.begin = time.monotonic()
        self.first = first
        reason = "all steps are done"
        self.total = settings.total_steps
        while settings.fit_to_minutes or dispatch < settings.num_dispatches:
            if stop.is_set():
                reason = "a signal asked to stop"
                break
            if self.time_is_up():
                reason = f"{settings.max_minutes:g} minutes are up"
                break
            variant = variant_of(dispatch, self.variants, settings.seed)
            if settings.fit_to_minutes and self.reported is not None:
                self.total = max(self.steps_that_fit(), dispatch * per + 1)
            sent = time.monotonic()
            state, found = self.programs[str(variant)](
                state, self.key, self.put(self.total), *self.sources["train"]
            )
            dispatch += 1
            if pending is not None:
                began = self.report(*pending, began)
            pending = (dispatch * per, variant, found)
            step = dispatch * per
            validates = settings.validate_every and (
                step // settings.validate_every > (step - per) // settings.validate_every
            )
            if validates or time.monotonic() - saved > 60 * settings.save_minutes:
                self.report(*pending, None)
                # At most: the one before may have run for some of it.
                self.slowest = max(self.slowest, time.monotonic() - sent)
                pending = None
                if time.monotonic() - saved > 60 * settings.save_minutes:
                    self.save(state, step)
                    saved = time.monotonic()
                if validates:
                    self.validate(state, step)
                began = time.monotonic()
        if pending is not None:
            self.report(*pending, None)
        step = int(jax.device_get(state.step))
        self.save(state, step)
        self.export(state)
        self.checkpoints.wait()
        of = "" if settings.fit_to_minutes else f" of {self.total}"
        self.say(f"stopped at step {step}{of}: {reason}")
        if step < self.total and not settings.fit_to_minutes:
            self.say("the same command again goes on from here")
        return state

    def time_is_up(self) -> bool:
        return self.seconds_left() < 0

    def seconds_left(self) -> float:
        """Until no other dispatch fits: one is under way, and the next would follow it."""
        if self.settings.max_minutes is None:
            return math.inf
        needed = 2 * self.slowest + self.last_validation + _SECONDS_TO_END
        return self.start + 60 * self.settings.max_minutes - needed - time.monotonic()

    def steps_that_fit(self) -> int:
        """Steps at the end of the time, by the speed since the start."""
        assert self.reported is not None
        step, when = self.reported
        rate = (step - self.first) / (when - self.begin)
        return step + int(rate * max(self.seconds_left() + time.monotonic() - when, 0))

    def report(self, step: int, variant: Variant, found: dict, began: float | None) -> float:
        """Logs a dispatch when it is done, and returns when that was.

        Args:
            began: when the one before was done. None where that is not known because both were
                waited for; then no speed is logged.
        """
        found = jax.device_get(found)
        now = time.monotonic()
        self.reported = step, now
        per, speed = self.settings.steps_per_dispatch, None
        if began is not None:
            self.slowest = max(self.slowest, now - began)
            speed = per * variant.num_scenes / (now - began)
        skipped = int(np.sum(found["skipped"]))
        fine = found["skipped"] == 0
        means = {
            name: float(np.mean(x[fine])) if fine.any() else math.nan
            for name, x in found.items()
            if name != "skipped"
        }
        line = {"kind": "train", "step": step, "variant": str(variant), **means}
        line |= {"skipped": skipped, "scenes_per_second": speed, "seconds": now - self.start}
        self.log(line)
        every = self.settings.log_every
        if step // every > (step - per) // every or step == per:
            rate = (step - self.first) / (now - self.begin)
            left = (self.total - step) / rate / 60
            parts = " ".join(
                f"{short} {means[name]:.4f}" for short, name in _SHORT.items() if name in means
            )
            self.say(
                f"step {step}/{self.total} {parts} lr {means['learning_rate']:.1e} "
                + ("" if speed is None else f"{speed:.0f} scenes/s ")
                + f"{rate:.2f} steps/s, {left:.1f} min left"
                + (f", skipped {skipped}" if skipped else "")
            )
        return now

    def validate(self, state: TrainState, step: int) -> None:
        begin = time.monotonic()
        key = jax.jit(jax.random.fold_in, static_argnums=1)(self.key, _VALIDATION_KEY)
        key = jax.device_put(key, self.key.sharding)
        found = jax.device_get(
            self.programs["validation"](state.ema, key, *self.sources["validation"])
        )
        values = {name: float(x) for name, x in found.items()}
        self.log({"kind": "validation", "step": step, **values, "seconds": begin - self.start})
        parts = " ".join(
            f"{name} {values[name]:.4f}" for name in ("auc30", "abs_rel", "total") if name in values
        )
        self.last_validation = time.monotonic() - begin
        self.say(f"validation at step {step}: {parts} ({self.last_validation:.1f} s)")

    def save(self, state: TrainState, step: int) -> None:
        document = {"settings": self.settings.to_dict(), "config": self.model.config.to_dict()}
        self.checkpoints.save(step, state, document)

    def export(self, state: TrainState) -> None:
        path = self.settings.export or self.settings.out / "model.safetensors"
        export_model(self.model, state.ema, path)
        mebibytes = path.stat().st_size / 2**20 if path.is_file() else math.nan
        self.say(f"wrote {path} ({mebibytes:.1f} MiB)")

    def log(self, line: dict) -> None:
        # JSON has no NaN.
        clean = {
            name: None if isinstance(x, float) and not math.isfinite(x) else x
            for name, x in line.items()
        }
        with self.log_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")


_SHORT = {"loss": "total", "cam": "camera", "depth": "depth_error", "points": "points_error"}
_SHORT |= {"turn": "pair_rotation", "aim": "pair_direction", "grad": "gradient_norm"}


def export_model(model: SceneModel, params: dict, path: pathlib.Path) -> None:
    """Writes a model with these parameters, every kernel in bfloat16, as a checkpoint of ours.

    Args:
        model: may be abstract.
    """
    params = {
        name: x.astype(jnp.bfloat16) if name.endswith(".kernel") else x
        for name, x in params.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(with_named(model, params), path, overwrite=True)


class _SignalsAskToStop:
    """Turns SIGTERM and the first Ctrl-C into an event, where signals can be handled at all: in the
    main thread."""

    def __enter__(self) -> threading.Event:
        event = threading.Event()
        self.before = {}
        if threading.current_thread() is threading.main_thread():

            def handle(number, frame):
                event.set()
                signal.signal(signal.SIGINT, self.before[signal.SIGINT])  # the second one ends it

            for number in (signal.SIGTERM, signal.SIGINT):
                self.before[number] = signal.signal(number, handle)
        return event

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def _first_model(settings: TrainSettings, *, only_shapes: bool) -> VGGT:
    if settings.init is not None:
        model = load_model(settings.init)
        if not isinstance(model, VGGT):
            raise InputError(
                f"init {settings.init}: only VGGT can be trained, not {model.traits.title}"
            )
        config = dataclasses.replace(model.config, pixel_centre=PIXEL_CENTRE)
        return with_named(abstract_vggt(config), named_parameters(model))
    config = small_config() if settings.config is None else VGGTConfig.from_json(settings.config)
    config = dataclasses.replace(config, pixel_centre=PIXEL_CENTRE)
    make = lambda: initial_model(config, jax.random.key(settings.seed))
    return jax.eval_shape(make) if only_shapes else jax.jit(make)()


def _check_same_run(settings: TrainSettings, earlier: dict, say) -> None:
    if differences := settings.differences(earlier):
        raise InputError(
            f"{settings.out} holds a run of other settings; choose another folder, or those "
            "settings: " + "; ".join(differences)
        )
    if earlier["steps"] != settings.steps:
        say(
            f"steps changed from {earlier['steps']} to {settings.steps}: "
            "the learning rate follows the new schedule from here"
        )


def _check_frozen(frozen: tuple[str, ...], model: nnx.Module) -> None:
    names = list(named_parameters(model))
    if unknown := [start for start in frozen if not any(name.startswith(start) for name in names)]:
        raise InputError(f"freeze: no parameter begins with {unknown}; names are like {names[0]}")


def forget_later_lines(log: pathlib.Path, step: int) -> None:
    """Removes from a log what a run that was killed wrote after its last checkpoint, and will
    again.

    Args:
        log: lines of JSON; need not exist. A last line that was cut off goes, too.
        step: of the checkpoint.
    """
    if not log.exists():
        return
    with open(log, "rb") as file:
        lines = file.readlines()
    kept = [line for line in lines if line.endswith(b"\n") and _step_of(line) <= step]
    if len(kept) < len(lines):
        with replacing(log) as file:
            file.writelines(kept)


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
