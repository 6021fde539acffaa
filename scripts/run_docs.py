"""Runs every command and block of code of README.md and docs/*.md, and prints what failed.

    python scripts/run_docs.py                    # all pages; some minutes
    python scripts/run_docs.py README.md --list   # what would run, and what would not

Pages are made for people with a GPU and photographs of their own. Here the small model stands in
for models from the hub, the pictures that ship with the package for photographs, and a video of
them for clip.mp4. Blocks of a page run one after another in one folder, where later ones find what
earlier ones made; those of Python share their variables. What needs a network, a GPU, another
program or hours is not run, and is listed with the reason.
"""

import argparse
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

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
    "convert": "needs official weights",
    "export_stablehlo": "needs minutes",
    "scripts/": "a measurement, on a GPU or for long",
    "vggt-jax app": "serves until it is ended",
    "vggt-jax serve": "serves until it is ended",
    "vggt-jax view": "serves until it is ended",
    "clip.mp4 --frames 50 --masks": "needs masks of the frames that are chosen",
    "--format mesh": "needs Open3D",
    "--server": "needs a server",
    "infer_on_server": "needs a server",
    "vggt_jax.view": "serves until it is ended",
    "calibrate": "needs minutes",
    "vggt-jax bench": "needs a GPU, or minutes",
    "yyfz233/Pi3X": "needs a model that takes priors",
    "ruff": "of contributors",
    "mkdocs": "of contributors",
    "completions/": "writes to the home folder",
    "jax.profiler": "needs a GPU",
    "pallas_kernels": "has a test of its own (tests/test_examples.py)",
}
HUB = re.compile(r"facebook/VGGT-1B|yyfz233/Pi3\b|facebook/map-anything\S*|(?<=--model )\.\.\.")


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
        return next((why for part, why in NOT_RUN.items() if part in self.code), None)


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, commands one by one."""
    text = page.read_text(encoding="utf-8")
    found, name = [], str(page.relative_to(ROOT))
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        if match[1] == "python":
            found.append(Block(name, line, "python", match[2]))
            continue
        commands = match[2].replace("\\\n", "\0").split("\n")
        for i, command in enumerate(commands):
            if command.strip() and not command.lstrip().startswith("#"):
                found.append(Block(name, line + i, "bash", command.replace("\0", " ").strip()))
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


def run_command(block: Block, folder: Path) -> str | None:
    """Runs a command of a shell; what it said where it failed."""
    command = HUB.sub(str(SMALL), block.code)
    command = re.sub(r"\.venv/bin/(vggt-jax|python)\b", r"\1", command)
    command = re.sub(r"\bvggt_jax/samples", str(ROOT / "vggt_jax" / "samples"), command)
    command = re.sub(r"\s{2,}#.*", "", command).replace("; pip install '.[view]'", "")
    command = command.replace("--frames 50", "--frames 4").replace("masks/{scene}", "masks")
    python = shlex.quote(sys.executable)
    command = re.sub(r"(^|&& )vggt-jax\b", rf"\1{python} -m vggt_jax.cli", command)
    command = re.sub(r"(^|&& )python\b", rf"\1{python}", command)
    if out := re.search(r" --out (\S+)", command):  # Of an earlier block.
        place = folder / out[1]
        if place.is_dir():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
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


def run_python(block: Block, folder: Path, names: dict) -> str | None:
    """Runs a block of Python with the variables of those before it."""
    code = HUB.sub(str(SMALL), block.code)
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


def variables() -> dict:
    """What pages speak of without making it, each time from the small model."""
    model = vggt_jax.load_model(SMALL)
    recon = vggt_jax.infer(sorted(SAMPLE.glob("*.jpg"))[:4], model=model)
    images = np.zeros((1, 2, 112, 112, 3), np.uint8)
    import jax

    return {"vggt_jax": vggt_jax, "jax": jax, "model": model, "recon": recon, "images": images}


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
                if block.language == "python":
                    problem = run_python(block, folder, names)
                else:
                    problem = run_command(block, folder)
                if problem:
                    failed[where] = problem
                    print(f"FAILED   {where}\n{problem}", flush=True)
    print(f"{counts['ran']} blocks ran, {counts['not run']} did not, {len(failed)} failed")
    if args.json:
        args.json.write_text(json.dumps(failed, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
