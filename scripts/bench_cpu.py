"""Times `vggt-jax infer` on a CPU, from photographs to files, with its peak of memory.

    python scripts/bench_cpu.py --out docs/benchmarks/cpu.jsonl
    python scripts/bench_cpu.py --models DA3-SMALL --frames 8
    python scripts/bench_cpu.py --models small --frames 8            # the model that ships
    python scripts/bench_cpu.py --table docs/benchmarks/cpu.jsonl    # for README.md

Models have the released sizes and random weights, and are kept as `vggt-jax convert` writes them;
`small` is the model that ships, which runs where none is named.
Photographs are the pictures that ship with the package, enlarged to what a telephone takes, of
4032x3024 pixels. The command runs on a few cores in a process of its own, twice: with no compiled
programs, and with those of the first run. One JSON line for each run: seconds by step, and of the
whole command; the peak of the process. `--table` prints the table of such a file, and the entries
of docs/benchmarks/readme_figures.toml that check its figures.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "vggt_jax" / "samples" / "cellar"
PHOTOGRAPH = 4032, 3024  # Width and height in pixels.
SMALL = "small"  # The model that ships.
# What runs before photographs are read, by the names that the command gives its steps.
START = ("loading the model",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["DA3-SMALL", "VGGT-1B"],
                        choices=["DA3-SMALL", "DA3-BASE", "VGGT-1B", SMALL])  # fmt: skip
    parser.add_argument("--frames", type=int, nargs="+", default=[2, 8, 25])
    parser.add_argument("--cores", type=int, default=2, help="how many of the machine's to use")
    parser.add_argument("--out", type=Path, help="file to append JSON lines to")
    parser.add_argument("--table", type=Path, help="print the table of this file, and stop")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return 0
    cores = sorted(os.sched_getaffinity(0))
    if not 0 < args.cores <= len(cores):
        parser.error(f"--cores {args.cores}: there are {len(cores)}")
    os.sched_setaffinity(0, cores[: args.cores])  # Of processes that it starts, too.
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photographs(folder / "photographs", max(args.frames))
        for model in args.models:
            if model != SMALL:
                # Not in this process, whose peak a child would begin with.
                run_here(["--save", model, str(folder / model)])
            for frames in args.frames:
                for programs in ("compiled", "kept"):
                    line = {"model": model, "frames": frames, "cores": args.cores}
                    line |= {"programs": programs, **time_infer(folder, line)}
                    failed += "error" in line
                    report(line, args.out)
    return 1 if failed else 0


def make_photographs(folder: Path, number: int) -> None:
    folder.mkdir()
    pictures = sorted(SAMPLE.glob("*.jpg"))
    for i in range(number):
        image = Image.open(pictures[i % len(pictures)]).convert("RGB")
        side = image.width, round(image.width * PHOTOGRAPH[1] / PHOTOGRAPH[0])
        image = image.crop((0, 0, *side)).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)
        image.save(folder / f"{i:02d}.jpg", quality=90)


def run_here(arguments: list[str]) -> None:
    subprocess.run([sys.executable, __file__, *arguments], check=True)


def save_random(name: str, destination: str) -> None:
    """Writes a model of the released size with random weights."""
    from random_model import random_model

    import vggt_jax

    configs = {
        "DA3-SMALL": vggt_jax.DA3Config.small,
        "DA3-BASE": vggt_jax.DA3Config.base,
        "VGGT-1B": vggt_jax.VGGTConfig.vggt_1b,
    }
    vggt_jax.save_model(random_model(configs[name]()), destination)


def time_infer(folder: Path, case: dict) -> dict:
    """Runs the command once: what it took, or what it said where it failed."""
    photographs = sorted((folder / "photographs").iterdir())[: case["frames"]]
    out = folder / "out"
    command = [sys.executable, "-m", "vggt_jax.cli", "infer", *map(str, photographs)]
    if case["model"] != SMALL:
        command += ["--model", str(folder / case["model"])]
    command += ["--out", str(out)]
    command += ["--json", "--overwrite", "--no-memory-check"]
    programs = folder / "programs" / f"{case['model']}-{case['frames']}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as wrong:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=said,
            stderr=wrong,
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        said.seek(0)
        wrong.seek(0)
        if code := os.waitstatus_to_exitcode(status):
            return {"error": f"exit code {code}: {wrong.read()[-500:].decode(errors='replace')}"}
        outcome = json.loads(said.read())
    steps = {step: round(value, 2) for step, value in outcome["seconds"].items()}
    from_photographs = sum(x for name, x in outcome["seconds"].items() if name not in START)
    import jax

    return {
        "width": outcome["width"],
        "height": outcome["height"],
        "seconds": steps,
        "photographs_to_files_s": round(from_photographs, 2),
        "command_s": round(seconds, 2),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
        "cpu": cpu_name(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    return next(named, platform.processor())


def table(file: Path) -> str:
    """The table of a file for README.md, and the entries that check its figures: of runs with kept
    programs, or where there is none of the first run."""
    lines = [json.loads(x) for x in file.read_text(encoding="utf-8").splitlines() if x]
    lines = sorted(lines, key=lambda x: x["programs"] == "kept")
    found = {(x["model"], x["frames"]): x for x in lines if "error" not in x}
    frames = sorted({number for _, number in found})
    rows = [f"| frames | {' | '.join(map(str, frames))} |", "|---" * (len(frames) + 1) + "|"]
    entries = []
    for model in sorted({name for name, _ in found}):
        cases = [found.get((model, number)) for number in frames]
        one = next(x for x in cases if x is not None)
        cells = [
            "not measured" if x is None else f"{seconds(x)} s, {x['peak_gib']:.1f} GiB"
            for x in cases
        ]
        says = f"| {' | '.join(cells)} |"
        rows.append(f"| {model}, {one['width']}x{one['height']} {says}")
        entries += ["", "[[figure]]", f'says = "{says}"', "from = ["]
        for case in cases:
            if case is None:
                continue
            picked = {name: case[name] for name in ("model", "frames", "programs")}
            where = ", ".join(f"{name} = {json.dumps(value)}" for name, value in picked.items())
            for field in ("photographs_to_files_s", "peak_gib"):
                origin = f'file = "{file.name}", where = {{ {where} }}, field = "{field}"'
                entries.append(f"  {{ {origin} }},")
        entries.append("]")
    return "\n".join([*rows, *entries])


def seconds(line: dict) -> str:
    """To two digits, so that others on such a machine would read the same."""
    value = line["photographs_to_files_s"]
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def report(line: dict, out: Path | None) -> None:
    print(json.dumps(line), flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--save"]:
        save_random(*sys.argv[2:4])
    else:
        sys.exit(main())
