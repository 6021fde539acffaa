"""Kills work with SIGKILL at random moments, and checks that nothing is lost, mixed or done twice.

    python scripts/kill_test.py --kills 50                  # all five
    python scripts/kill_test.py --kills 50 --only conversion export

Each kill is followed by a look at what is there, as the next command would find it, and all of them
by one run that is not killed. Processes are forked from one that has imported everything, the model
of `infer` and `batch` is the made-up one of the tests, and training has a step that compiles at
once, so that time goes into reading and writing. Half of the kills fall anywhere between the start
and the end of the work, half after it has begun to write. A table says how often the results were
those of before and of after; docs/benchmarks/kills.jsonl has one such run.
"""

import abc
import collections
import contextlib
import dataclasses
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from made_up_model import FAMILY, MadeUp, MadeUpConfig
from PIL import Image
from safetensors.numpy import save_file

import vggt_jax
from vggt_jax import checkpoints
from vggt_jax.checkpoints.rules import expand
from vggt_jax.cli import commands
from vggt_jax.models import conversion, register
from vggt_jax.models.registry import official_keys
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.training import TrainSettings, loop
from vggt_jax.training.initialization import small_config


class Failed(Exception):  # noqa: N818  a finding, not an error of this program
    """Something was lost, mixed, or done twice."""


def require(condition: bool, what: str) -> None:
    """Notes what must hold."""
    if not condition:
        raise Failed(what)


class Work(abc.ABC):
    """One kind of work, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()

    @abc.abstractmethod
    def prepare(self) -> None:
        """Makes what the work needs, and good results that kills must not harm."""

    @abc.abstractmethod
    def run(self, turn: int) -> None:
        """Does the work; in a process of its own, which may be killed."""

    @abc.abstractmethod
    def check(self, turn: int) -> str:
        """Looks at the results after `run(turn)` was killed or ended, also in a process of its own.

        Returns:
            "old", "new", or how far it came.
        """

    def check_end(self, turn: int) -> None:  # noqa: B027  most have nothing more to ask
        """Looks at the results after the last run, which nobody killed."""


class Conversion(Work):
    """`convert --overwrite` over a good checkpoint, of other values each time."""

    def prepare(self) -> None:
        config = dataclasses.replace(small_config(), depth=2, dpt_layers=(0, 0, 1, 1), vit_depth=2)
        rng = np.random.default_rng(0)
        tensors = {
            key: rng.normal(size=slot.rule.shape).astype(np.float32)
            for key, slot in expand(official_keys()["vggt"].rules(config)).items()
        }
        save_file(tensors, self.folder / "official.safetensors")
        (self.folder / "official.json").write_text(json.dumps(config.to_dict()))
        self.run(-1)
        (self.folder / "out" / "mine.txt").write_text("mine")

    def run(self, turn: int) -> None:
        dtype = ("float32", "bfloat16")[turn % 2]
        source = self.folder / "official.safetensors"
        conversion.convert(source, self.folder / "out", dtype=dtype, overwrite=True)

    def check(self, turn: int) -> str:
        params, document = checkpoints.read(self.folder / "out", verify=True)
        require((self.folder / "out" / "mine.txt").read_text() == "mine", "a file of mine is gone")
        narrow = any(x.dtype.name == "bfloat16" for x in params.values())
        require(document["model"] == "vggt", "no VGGT")
        # Turns before this one may have been killed before they replaced anything.
        return "new" if narrow == (turn % 2 == 1) else "old"


class Infer(Work):
    """`infer --overwrite` over good results, of other photographs each time."""

    def prepare(self) -> None:
        for letter in "ab":
            _save_photographs(self.folder / letter, letter, 2)
        _save_made_up_model(self.folder)

    def run(self, turn: int) -> None:
        photographs = self.folder / "ab"[turn % 2]
        _reconstruct("infer", photographs, self.folder, "--overwrite")

    def check(self, turn: int) -> str:
        out = self.folder / "out"
        if not out.exists():
            require(turn == 0, "no results")
            return "old"
        recon = vggt_jax.load_reconstruction(out)
        letter = recon.names[0][0]
        cameras = json.loads((out / "cameras.json").read_text())["frames"]
        names = [frame["name"] for frame in cameras]
        require(names == list(recon.names), f"cameras of {names}, predictions of {recon.names}")
        pictures = {path.name[0] for path in (out / "depth_pictures").iterdir()}
        require(pictures == {letter}, f"pictures of {pictures}, predictions of {letter}")
        require((out / "points.ply").stat().st_size > 1000, "no points")
        return "new" if letter == "ab"[turn % 2] else "old"


class Export(Work):
    """`export --format nerfstudio --overwrite` over a good one, with other points each time."""

    def prepare(self) -> None:
        _save_photographs(self.folder / "photographs", "p", 3)
        self.run(-1)
        (self.folder / "out" / "images" / "mine.png").write_bytes(b"mine")

    def run(self, turn: int) -> None:
        frames = vggt_jax.load_images(self.folder / "photographs", size=112)
        shape = frames.images.shape[:3]
        rng = np.random.default_rng(0)
        recon = Reconstruction(
            images=frames.images,
            camera_from_world=np.tile(np.eye(3, 4, dtype=np.float32), (shape[0], 1, 1)),
            intrinsics=np.tile(np.diag([90, 90, 1]).astype(np.float32), (shape[0], 1, 1)),
            world_points=rng.random((*shape, 3), np.float32) + np.float32(turn % 2),
            world_points_confidence=1 + rng.random(shape, np.float32),
            names=frames.names,
            transforms=frames.transforms,
        )
        vggt_jax.export_reconstruction(
            recon,
            self.folder / "out",
            format="nerfstudio",
            images=self.folder / "photographs",
            points="head",
            max_points=1000 + turn % 2,
            overwrite=True,
        )

    def check(self, turn: int) -> str:
        out = self.folder / "out"
        vggt_jax.files.remove_leftovers(self.folder)  # As whatever comes next does.
        require((out / "images" / "mine.png").read_bytes() == b"mine", "a file of mine is gone")
        named = json.loads((out / "transforms.json").read_text())["frames"]
        require(len(named) == 3, f"{len(named)} frames")
        for frame in named:
            with Image.open(out / frame["file_path"]) as image:
                image.load()
        header = (out / "points.ply").read_bytes()[:400].decode("latin-1")
        count = int(header.split("element vertex ")[1].split()[0])
        require(count in (1000, 1001), f"{count} points")
        return "new" if count == 1000 + turn % 2 else "old"


class Batch(Work):
    """`batch`, killed again and again: each scene is done once."""

    _SCENES = 4

    def prepare(self) -> None:
        for i in range(self._SCENES):
            _save_photographs(self.folder / "scenes" / f"s{i}", "p", 2, seed=i)
        _save_made_up_model(self.folder)

    def run(self, turn: int) -> None:
        _reconstruct("batch", self.folder / "scenes", self.folder)

    def check(self, turn: int) -> str:
        noted = self.folder / "done.json"
        before = json.loads(noted.read_text()) if noted.exists() else {}
        now = {}
        for path in sorted(self.folder.glob("out/*/predictions.npz")):
            require(len(vggt_jax.load_reconstruction(path).names) == 2, f"{path} is not whole")
            now[path.parent.name] = path.stat().st_mtime_ns
        lost = before.keys() - now.keys()
        require(not lost, f"lost {lost}")
        twice = [name for name in before if before[name] != now[name]]
        require(not twice, f"done twice: {twice}")
        if len(now) == self._SCENES:  # From the beginning again.
            for path in self.folder.glob("out/*/predictions.npz"):
                path.unlink()
            now = {}
        noted.write_text(json.dumps(now))
        return f"{len(now)} of {self._SCENES} done"


class Training(Work):
    """Training, killed again and again: it goes on from its last checkpoint, and ends where a run
    that nobody killed ends."""

    _STEPS, _AT_ONCE = 20, 5

    def prepare(self) -> None:
        config = dataclasses.replace(small_config(), **_TINY)
        (self.folder / "config.json").write_text(json.dumps(config.to_dict()))

    def run(self, turn: int) -> None:
        self._train(self.folder / "out", turn, save_minutes=1e-9)

    def _train(self, out: Path, turn: int, save_minutes: float) -> None:
        settings = TrainSettings(
            out=out,
            config=self.folder / "config.json",
            variants=("1x2@28x28",),
            validation_variant="1x2@28x28",
            validate_every=0,
            steps=self._STEPS * (turn + 1),
            steps_per_dispatch=self._AT_ONCE,
            save_minutes=save_minutes,
        )
        loop.make_steps = _steps_by_rule
        loop.train(settings, say=lambda line: None)

    def check(self, turn: int) -> str:
        out, noted = self.folder / "out", self.folder / "saved.txt"
        log = out / "train.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        steps = []
        for i, line in enumerate(lines):
            try:
                steps.append(json.loads(line)["step"])
            except ValueError:
                require(i == len(lines) - 1, "the log is broken in the middle")
        every = [self._AT_ONCE * (i + 1) for i in range(len(steps))]
        require(steps == every, f"steps are missing in the log, or there twice: {steps}")
        saved = [int(path.name) for path in out.glob("checkpoints/*") if path.name.isdigit()]
        before, now = int(noted.read_text()) if noted.exists() else 0, max(saved, default=0)
        require(now >= before, f"the checkpoint of step {before} is lost, the newest is of {now}")
        require(now <= len(steps) * self._AT_ONCE, f"the log lacks steps up to {now}")
        noted.write_text(str(now))
        if (out / "settings.json").exists():
            json.loads((out / "settings.json").read_text())
        if (out / "model.safetensors").exists():
            checkpoints.read(out / "model.safetensors", verify=True)
        return f"step {now}"

    def check_end(self, turn: int) -> None:
        whole = self.folder / "never_killed"
        self._train(whole, turn, save_minutes=60)
        found, expected = (
            checkpoints.read(out / "model.safetensors")[0] for out in (self.folder / "out", whole)
        )
        for name, x in expected.items():
            same = np.array_equal(np.asarray(found[name]), np.asarray(x))
            require(same, f"{name} is not that of a run that nobody killed")


_TINY = dict(
    img_size=28, embed_dim=32, num_heads=2, depth=1, vit_depth=1, vit_num_heads=2,
    num_register_tokens=1, camera_trunk_depth=1, camera_num_heads=2, camera_iters=1, dpt_features=4,
    dpt_out_channels=(4, 4, 4, 4), dpt_layers=(0, 0, 0, 0), enable_point=False, enable_track=False,
    enable_depth=False,
)  # fmt: skip
_WORK = {work.__name__.lower(): work for work in (Conversion, Infer, Export, Batch, Training)}


def _steps_by_rule(recipe, variant, *, num_steps, mesh):
    """In place of steps that learn: every number changes by itself and the number of the step."""
    del recipe, variant, mesh

    def step(state, _):
        change = lambda x: (0.75 * x + state.step).astype(x.dtype) if x.ndim else x
        params, ema = (jax.tree.map(change, x) for x in (state.params, state.ema))
        number = state.step.astype(jnp.float32)
        found = {"total": number, "gradient_norm": number, "learning_rate": number}
        changed = dataclasses.replace(state, params=params, ema=ema, step=state.step + 1)
        return changed, found | {"skipped": state.skipped}

    def steps(state, key, total_steps):
        del key, total_steps
        return jax.lax.scan(step, state, length=num_steps)

    return jax.jit(steps, donate_argnums=0, keep_unused=True)


def _save_made_up_model(folder: Path) -> None:
    config = MadeUpConfig(depth=1)
    vggt_jax.save_model(MadeUp(config, rngs=nnx.Rngs(0)), folder / "model.safetensors")


def _reconstruct(command: str, photographs: Path, folder: Path, *options: str) -> None:
    """`infer` or `batch` of 56 pixels, into `out` in the folder, by the model in it."""
    paths = ["--out", str(folder / "out"), "--model", str(folder / "model.safetensors")]
    code = commands.run([command, str(photographs), *paths, "--size", "56", *options])
    require(code == 0, f"exit {code}")


def _save_photographs(folder: Path, letter: str, number: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    tiles = np.random.default_rng(seed).integers(30, 200, (24, 40, 3), np.uint8)
    picture = Image.fromarray(tiles).resize((480, 288), Image.Resampling.BICUBIC)
    for i in range(number):
        picture.crop((6 * i, 4, 6 * i + 320, 228)).resize((112, 84)).save(
            folder / f"{letter}{i}.png"
        )


def _forked(function: Callable[[], object]) -> tuple[int, int]:
    """Starts a function in a process of its own; its number, and a pipe for what it says."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.close(reading)
        quiet = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        said = function()
        os.write(writing, str(said).encode())
        code = 0
    except Failed as finding:
        os.write(writing, f"FAILED: {finding}".encode())
    except BaseException:  # noqa: BLE001  told to the parent
        os.write(writing, f"FAILED: {traceback.format_exc()}".encode()[-3000:])
    finally:
        os._exit(code)


def _ended(child: int, reading: int) -> tuple[int, str]:
    """The status and the words of a process, once it has ended."""
    said = b""
    while part := os.read(reading, 65536):
        said += part
    os.close(reading)
    return os.waitpid(child, 0)[1], said.decode()


def _lives(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def _has_begun_to_write(work: Work) -> bool:
    for here, folders, files in os.walk(work.folder):  # Which passes over what vanishes meanwhile.
        is_new = here.endswith(".partial/new") and bool(folders or files)
        temporary = any(name.startswith(".vggt-jax-") and name.endswith(".tmp") for name in files)
        if is_new or temporary or "orbax-checkpoint-tmp" in here:
            return True
    return False


def kill_at_random(work: Work, kills: int, rng: random.Random) -> tuple[int, dict[str, int]]:
    """Runs and kills, and returns how many kills there were, and what was found after them."""
    found: dict[str, int] = collections.Counter()
    began = time.monotonic()
    status, said = _ended(*_forked(lambda: (work.run(0), " ".join(sys.modules))[1]))
    require(status == 0, f"a run that nobody killed: {said}")
    lasts = time.monotonic() - began
    for name in said.split():  # What it imported, others need not import again.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    status, said = _ended(*_forked(lambda: work.check(0)))
    require(status == 0, f"after it: {said}")
    killed = turn = 0
    while killed < kills and turn < 3 * kills:
        turn += 1
        began = time.monotonic()
        child, reading = _forked(lambda: work.run(turn))  # noqa: B023  runs before the loop goes on
        if turn % 2:
            time.sleep(rng.uniform(0, 1.05 * lasts))
        else:
            while _lives(child) and not _has_begun_to_write(work):
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.05 * lasts + 0.02))
        os.kill(child, signal.SIGKILL)
        status, said = _ended(child, reading)
        was_killed = os.WIFSIGNALED(status)
        require(was_killed or status == 0, f"turn {turn} ended by itself: {said}")
        killed += was_killed
        if not was_killed:
            lasts = 0.7 * lasts + 0.3 * (time.monotonic() - began)
        status, said = _ended(*_forked(lambda: work.check(turn)))  # noqa: B023  as above
        require(status == 0, f"after kill {killed} (turn {turn}): {said}")
        found[said if said in ("old", "new") else "going on"] += was_killed
    turn += 1
    status, said = _ended(*_forked(lambda: work.run(turn)))
    require(status == 0, f"the run after all kills: {said}")
    status, said = _ended(*_forked(lambda: work.check(turn)))
    require(status == 0, f"after the last run: {said}")
    status, said = _ended(*_forked(lambda: work.check_end(turn)))
    require(status == 0, f"at the end: {said}")
    left = [path.name for path in work.folder.rglob(".vggt-jax-*")]
    left += [path.name for path in work.folder.rglob("*orbax-checkpoint-tmp*")]
    require(not left, f"left behind: {left}")
    return killed, found


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Kills work at random moments, and says what was found after it."""

    kills: int = 50
    """Kills of each kind of work."""
    only: tuple[str, ...] = tuple(_WORK)
    """Some of conversion, infer, export, batch and training."""
    seed: int = 0


def main() -> int:
    """Runs the command line and returns its exit code: 1 where something was lost."""
    arguments = tyro.cli(Arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    failed = 0
    register(FAMILY)
    print(f"{'work':<12}{'kills':>6}{'old':>6}{'new':>6}{'going on':>10}{'seconds':>9}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kills_") as folder:
        cache = Path(folder) / "programs"
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        for name in arguments.only:
            work, began = _WORK[name](Path(folder) / name), time.monotonic()
            try:
                status, said = _ended(*_forked(work.prepare))
                require(status == 0, f"before any kill: {said}")
                rng = random.Random(arguments.seed)
                kills, found = kill_at_random(work, arguments.kills, rng)
            except Failed as finding:
                failed += 1
                print(f"{name:<12}FAILED: {finding}", flush=True)
                continue
            counts = f"{found['old']:>6}{found['new']:>6}{found['going on']:>10}"
            print(f"{name:<12}{kills:>6}{counts}{time.monotonic() - began:>9.0f}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
