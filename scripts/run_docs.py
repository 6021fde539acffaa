"""Runs every command and block of code of README.md and docs/*.md, and prints what failed.

    python scripts/run_docs.py                    # all pages; some minutes
    python scripts/run_docs.py README.md --list   # what would run, and what would not

Pages are made for people with a GPU and photographs of their own. Here the small model stands in
for models from the hub, the pictures that ship with the package for photographs, and a video of
them for clip.mp4. Blocks of a page run one after another in one folder, where later ones find what
earlier ones made; those of Python share their variables. Servers are started, asked for a page, and
ended as by Ctrl-C. What needs a network, a GPU, another program or hours is not run, and is listed
with the reason.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import vggt_jax

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "vggt_jax" / "samples" / "cellar"
SMALL = ROOT / "vggt_jax" / "weights" / "small.safetensors"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# By a part of the command: why it is not run.
NOT_RUN = {
    "pip install": "installs",
    "git clone": "needs a network",
    "venv": "installs",
    "ns-train": "needs nerfstudio",
    "simple_trainer": "needs gsplat",
    "pytest": "is what CI runs",
    "compare_official": "needs the official code and its weights",
    "convert": "needs official weights; tests/checkpoints converts toys",
    "scripts/": "a measurement, on a GPU or for long",
    "clip.mp4 --frames 50 --masks": "needs masks of the frames that are chosen",
    "calibrate": "takes minutes; tests/cli/test_calibrate.py runs it",
    "vggt-jax bench": "takes minutes; tests/cli/test_commands.py runs it",
    "yyfz233/Pi3X": "needs a model that takes priors; tests/test_pi3x_doors.py has one",
    "data/eth3d": "needs the data set; tests/evaluation writes small ones",
    "s3://": "needs a bucket; tests/test_addresses.py has places in memory",
    "ray start": "needs several machines; tests/test_on_ray.py has two nodes on one",
    "--engine ray": "needs several machines; tests/test_on_ray.py has two nodes on one",
    "open_dataset": "needs the data set; tests/evaluation writes small ones",
    "pallas_kernels": "has a test of its own (tests/test_examples.py)",
}
# Of what is installed rarely: a part of the command, and the module that it needs.
NEEDS = {
    "--format mesh": "open3d",
    "vggt-jax app": "gradio",
    "vggt-jax serve": "fastapi",
    "--server": "fastapi",
    "infer_on_server": "fastapi",
    "vggt-jax view": "viser",
    "export_stablehlo": "flatbuffers",
}
HUB = re.compile(
    r"facebook/VGGT-1B|yyfz233/Pi3\b|facebook/map-anything\S*|depth-anything/[-\w.]+|"
    r"(?<=--model )\.\.\."
)
# What pages say of large models and many photographs, and what is done here in its place.
SMALLER = {
    "--layer 14": "--layer 3",
    "--num-frames 1 10 50 100": "--num-frames 1 2",
    "analyze sparsity": "analyze sparsity --min-tokens 0",
    "--frames 50": "--frames 4",
    "num_frames=8, size=(294, 518)": "num_frames=2, size=(28, 42)",
    "images = ...": "images = np.zeros((2, 28, 42, 3), np.uint8)",
    "devices=jax.devices()[2:]": "devices=jax.devices()",
    "devices=2": "devices=2, size=28",
    "--devices 2": "--devices 2 --size 28",
}
# What pages show a piece of code with, and have explained in words.
BEFORE = {
    "docs/attention.md": """
layers = (vggt_jax.Dense(),) * model.num_layers
vggt_jax.AttentionPlan(layers=layers).save('plan.json')
""",
    "docs/evaluation.md": """
from vggt_jax.evaluation import SceneTruth
true_camera_from_world, true_depth = recon.camera_from_world, recon.depth
valid = np.ones(true_depth.shape, bool)
truth = SceneTruth(
    camera_from_world=true_camera_from_world,
    intrinsics=recon.intrinsics,
    depth=true_depth,
    valid=valid,
)
""",
    "docs/kernels.md": """
from pallas_kernels import linear, norm_rope
x, cos, sin = np.ones((2, 5, 3, 32), np.float32), *np.ones((2, 5, 32), np.float32)
bias, scale, offset = np.ones((3, 32), np.float32), *np.ones((2, 32), np.float32)
""",
    "docs/scale.md": "images = images[0, :, :28, :28]",
}
BEFORE_BLOCK = {
    "hidden = linear(": "x, kernel, bias = (np.ones(s, np.float32) for s in ((5, 7), (7, 3), 3))",
}
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


@dataclasses.dataclass
class Block:
    """A block of code of a page, or one command of a block of commands."""

    page: str
    line: int
    language: str
    code: str

    @property
    def why_not(self) -> str | None:
        """Why it is not run; None for what is."""
        for part, module in NEEDS.items():
            if part in self.code and importlib.util.find_spec(module) is None:
                return f"needs {module}, which is not installed"
        return next((why for part, why in NOT_RUN.items() if part in self.code), None)

    @property
    def serves(self) -> bool:
        """Whether it runs until it is ended."""
        return re.search(r"vggt-jax (app|serve|view)\b", self.code) is not None

    @property
    def needs_server(self) -> bool:
        """Whether it asks a server, which must be there."""
        return "--server" in self.code or "infer_on_server" in self.code


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, commands one by one."""
    text = page.read_text(encoding="utf-8")
    found, name = [], str(page.relative_to(ROOT))
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if match[1] == "python":
            found.append(Block(name, line, "python", match[2]))
            continue
        for command in match[2].replace("\\\n", "\0").split("\n"):
            code = re.sub(r"(^|\s{2,})#.*", "", command.replace("\0", " ")).strip()
            if code:
                found.append(Block(name, line, "bash", code))
            line += 1 + command.count("\0")
    return found


def make_stand_ins(folder: Path) -> None:
    """Photographs, scenes, masks and a video as pages name them."""
    for name in (
        "photographs",
        "PHOTOGRAPHS",
        "kitchen",
        "garden",
        "scenes/a",
        "scenes/b",
        "images",
    ):
        (folder / name).mkdir(parents=True)
        for path in sorted(SAMPLE.glob("*.jpg")):
            shutil.copy(path, folder / name)
    shutil.copy(SAMPLE / "cameras.json", folder)
    (folder / "masks").mkdir()
    for path in (folder / "photographs").iterdir():
        size = Image.open(path).size
        Image.new("L", size, 255).save(folder / "masks" / f"{path.stem}.png")
    import av

    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 112
        stream.pix_fmt = "yuv420p"
        pictures = [
            Image.open(x).convert("RGB").resize((112, 112)) for x in sorted(SAMPLE.glob("*.jpg"))
        ]
        for i in range(60):
            frame = av.VideoFrame.from_ndarray(np.asarray(pictures[i % 8]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def here(code: str) -> str:
    """What is run in place of code of a page, for a small model and few photographs."""
    for large, small in SMALLER.items():
        code = code.replace(large, small)
    return HUB.sub(str(SMALL), code)


def command_of(block: Block, folder: Path) -> str:
    """A command of a shell as it is run here; what an earlier one wrote to its place is gone."""
    command = here(block.code)
    command = re.sub(r"\.venv/bin/(vggt-jax|python)\b", r"\1", command)
    command = re.sub(r"\bvggt_jax/samples", str(ROOT / "vggt_jax" / "samples"), command)
    command = command.replace("masks/{scene}", "masks")
    python = shlex.quote(sys.executable)
    command = re.sub(r"(^|&& )vggt-jax\b", rf"\1{python} -m vggt_jax.cli", command)
    command = re.sub(r"(^|&& )python\b", rf"\1{python}", command)
    if out := re.search(r" --out (\S+)", command):  # Of an earlier block.
        place = folder / out[1]
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
    return command


def run_command(block: Block, folder: Path) -> str | None:
    """Runs a command of a shell; what it said where it failed."""
    command = command_of(block, folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return None if done.returncode == 0 else f"{command}\n{done.stdout[-500:]}{done.stderr[-1500:]}"


@contextlib.contextmanager
def serving(command: str, folder: Path) -> Iterator[str]:
    """Runs a command that serves, and ends it as Ctrl-C does.

    Raises:
        RuntimeError: it serves nothing, or ends in another way; with what it said.
    """
    said = folder / "said.txt"
    with said.open("wb") as file:
        process = subprocess.Popen(
            f"exec {command}",
            shell=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            until = time.monotonic() + 300
            while (address := ADDRESS.search(said.read_text(errors="replace"))) is None:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command}\n{said.read_text(errors='replace')[-1500:]}")
                time.sleep(0.2)
            yield address[0]
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    if code not in (0, 128 + signal.SIGINT, -signal.SIGINT):
        raise RuntimeError(f"{command}\nended with {code}: {said.read_text()[-1500:]}")


def run_server(block: Block, folder: Path) -> str | None:
    """Starts a command that serves, asks for a page and ends it; what it said where it failed."""
    try:
        with serving(command_of(block, folder), folder) as address:
            until = time.monotonic() + 60
            while True:  # The address may be said shortly before anybody is served.
                try:
                    with urllib.request.urlopen(f"{address}{'/docs' * ('serve' in block.code)}"):
                        return None
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.5)
    except (OSError, RuntimeError) as error:
        return str(error)


def run(block: Block, folder: Path, names: dict) -> str | None:
    """Runs a block; what it said where it failed."""
    if block.serves:
        return run_server(block, folder)
    of_block = run_python if block.language == "python" else run_command
    arguments = (block, folder, names) if block.language == "python" else (block, folder)
    if not block.needs_server:
        return of_block(*arguments)
    serve = Block(block.page, block.line, "bash", f"vggt-jax serve --models {SMALL}")
    with serving(command_of(serve, folder), folder):
        return of_block(*arguments)


def run_python(block: Block, folder: Path, names: dict) -> str | None:
    """Runs a block of Python with the variables of those before it."""
    code = here(block.code)
    for start, setup in BEFORE_BLOCK.items():
        if start in code:
            exec(setup, names)
    for saved in re.findall(r'\.save\("(\w+)"\)', code):  # Of an earlier block.
        shutil.rmtree(folder / saved, ignore_errors=True)
    before, said = Path.cwd(), io.StringIO()
    os.chdir(folder)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            exec(compile(code, f"{block.page}:{block.line}", "exec"), names)
    except Exception:  # noqa: BLE001  # Whatever it is, a page is wrong.
        return traceback.format_exc(limit=-2)
    finally:
        os.chdir(before)
    return None


def variables() -> dict[str, Any]:
    """What pages speak of without making it, each time from the small model."""
    model = vggt_jax.load_model(SMALL)
    recon = vggt_jax.infer(sorted(SAMPLE.glob("*.jpg"))[:4], model=model)
    images = np.zeros((1, 2, 112, 112, 3), np.uint8)
    import jax

    known = {"vggt_jax": vggt_jax, "jax": jax, "np": np, "folder": str(SAMPLE)}
    return known | {"model": model, "recon": recon, "images": images}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pages", nargs="*", type=Path, help="by default all")
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, help="write what failed to this file, too")
    args = parser.parse_args()
    pages = [x.resolve() for x in args.pages] or [
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/*.md")),
    ]
    # JAX has not looked for devices yet; pages speak of two.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=2"
    failed, counts = {}, {"ran": 0, "not run": 0}
    shared = {} if args.list else variables()
    for page in pages:
        blocks = blocks_of(page)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if not args.list and any(block.why_not is None for block in blocks):
                make_stand_ins(folder)
                shared["recon"].save(folder / "scene")
            names = dict(shared)
            if not args.list and (setup := BEFORE.get(str(page.relative_to(ROOT)))):
                with contextlib.chdir(folder):
                    exec(setup, names)
            for block in blocks:
                where = f"{block.page}:{block.line}"
                if why := block.why_not:
                    counts["not run"] += 1
                    print(f"not run  {where}: {why}")
                    continue
                counts["ran"] += 1
                print(
                    f"{'would run' if args.list else 'run'}  {where}: {block.code.splitlines()[0]}"
                )
                if args.list:
                    continue
                if problem := run(block, folder, names):
                    failed[where] = problem
                    print(f"FAILED   {where}\n{problem}", flush=True)
    print(f"{counts['ran']} blocks ran, {counts['not run']} did not, {len(failed)} failed")
    if args.json:
        args.json.write_text(json.dumps(failed, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
