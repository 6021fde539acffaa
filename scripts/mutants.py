"""How much the tests notice: makes one mistake of mutants.toml at a time and runs its tests.

    python scripts/mutants.py --out docs/mutants.jsonl
    python scripts/mutants.py --out docs/mutants.jsonl --tier full
    python scripts/mutants.py --only skew_has_the_wrong_sign rule_keeps_one_block_less

Works on copies of the files that git tracks. First it checks the list, and that the tests pass
without a mistake. Then it prints a line of JSON for each mistake, and a table at the end. A result
that stands in FILE is not found again: delete the line, or the file, to have it found anew.
What the quick tier noticed, the full tier, which holds it, did too.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = Path(__file__).with_suffix(".toml")
PROGRAMS = Path(".pytest_cache", "programs")  # where tests/conftest.py keeps what was compiled
ALLOWED = {"quick": 0.1, "full": 0.0}  # share of the mutants that a tier may leave unnoticed
OLDEST_JAX = (0, 11)  # older ones skip the tests of the Mosaic GPU kernels
SECONDS = 3600  # of one mutant's tests; pytest's own limit ends a test that hangs much earlier
PASSED, NOT_STARTED, NOTHING_TO_RUN = 0, 4, 5  # pytest's exit statuses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mistake: in `file`, `old` becomes `new`, which `tests` should notice."""

    name: str
    area: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def problems(self, root: Path) -> list[str]:
        """Why this mistake cannot be made or noticed; nothing where it can."""
        path = root / self.file
        found = [f"{test} does not exist" for test in self.tests if not (root / test).exists()]
        if not path.is_file():
            return [*found, f"{self.file} does not exist"]
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            return [*found, f"{self.old!r} stands in {self.file} {count} times, not once"]
        try:
            compile(text.replace(self.old, self.new), self.file, "exec")
        except SyntaxError as error:
            found.append(f"{self.new!r} is no Python in {self.file}: {error}")
        return found


def read_mutants(path: Path = MUTANTS) -> list[Mutant]:
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**entry | {"tests": tuple(entry["tests"])}) for entry in entries]


def problems(mutants: Sequence[Mutant], root: Path = ROOT) -> list[str]:
    """What is wrong with a list, a line each."""
    counts = collections.Counter(mutant.name for mutant in mutants)
    twice = [f"{name}: stands there {count} times" for name, count in counts.items() if count > 1]
    return twice + [f"{m.name}: {problem}" for m in mutants for problem in m.problems(root)]


def copy_tracked(root: Path, copy: Path) -> None:
    """Copies the files that git tracks, as they are now, and the cache of compiled programs."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    if (root / PROGRAMS).is_dir():
        shutil.copytree(root / PROGRAMS, copy / PROGRAMS)


def run_tests(root: Path, tests: Sequence[str], tier: str) -> tuple[int, str, str]:
    """Runs tests up to the first that fails: pytest's exit status, that test, and the output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-m", ""] if tier == "full" else []
    environment = dict(os.environ)
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # so that it is the copy's own
    # A file that changes twice in a second could pass for the one whose bytecode is there.
    paths = [str(root), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, f"ran longer than {SECONDS} s", ""
    if (
        run.returncode == NOT_STARTED
    ):  # Says nothing of the mutant, such as that a package is missing.
        sys.exit(f"{run.stdout[-5000:]}\npytest did not start")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", run.stdout, re.MULTILINE)
    first = failed[1] if failed else f"pytest ended with {run.returncode}"
    return run.returncode, first, run.stdout


def try_mutant(mutant: Mutant, copy: Path, tier: str) -> dict:
    """Makes the mistake in a copy, runs its tests, and takes it back."""
    path = copy / mutant.file
    original = path.read_text(encoding="utf-8")
    begin = time.monotonic()
    path.write_text(original.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        status, first, _ = run_tests(copy, mutant.tests, tier)
    finally:
        path.write_text(original, encoding="utf-8")
    noticed = status not in (PASSED, NOTHING_TO_RUN)
    return {
        "name": mutant.name,
        "area": mutant.area,
        "file": mutant.file,
        "line": original[: original.index(mutant.old)].count("\n") + 1,
        "change": f"{mutant.old} -> {mutant.new}",
        "tier": tier,
        "noticed": noticed,
        "first_failure": first if noticed else None,
        "seconds": round(time.monotonic() - begin, 1),
        "jax": metadata.version("jax"),
    }


def check_unchanged(mutants: Sequence[Mutant], copy: Path, tier: str) -> None:
    """Ends the script if the tests fail without a mistake. Fills the copy's cache of programs."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
    status, first, output = run_tests(copy, tests, tier)
    if status not in (PASSED, NOTHING_TO_RUN):
        sys.exit(f"{output[-5000:]}\nfails without any mistake: {first}")


def run_all(mutants: Sequence[Mutant], tier: str, *, jobs: int, check: bool, done) -> None:
    """Tries mutants, some at a time, each in a copy of its own; `done` takes every result."""
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as temporary,
        concurrent.futures.ThreadPoolExecutor(jobs) as pool,
    ):
        first, *others = (Path(temporary, str(i)) for i in range(jobs))
        copy_tracked(ROOT, first)
        if check:
            check_unchanged(mutants, first, tier)
        copies: queue.Queue[Path] = queue.Queue()
        copies.put(first)
        for other in others:
            copies.put(shutil.copytree(first, other))

        def run(mutant: Mutant) -> dict:
            copy = copies.get()
            try:
                return try_mutant(mutant, copy, tier)
            finally:
                copies.put(copy)

        try:
            for future in concurrent.futures.as_completed(pool.submit(run, m) for m in mutants):
                done(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def table(mutants: Sequence[Mutant], noticed: set[str]) -> str:
    """How many of each area were noticed, and which were not, in Markdown."""
    areas: dict[str, list[str]] = {}
    for mutant in mutants:
        areas.setdefault(mutant.area, []).append(mutant.name)
    lines = ["| area | mutants | noticed | not noticed |", "|---|---|---|---|"]
    for area, names in [*areas.items(), ("all", [mutant.name for mutant in mutants])]:
        left = [name for name in names if name not in noticed]
        which = "" if area == "all" else ", ".join(f"`{name}`" for name in left)
        lines.append(f"| {area} | {len(names)} | {len(names) - len(left)} | {which} |")
    return "\n".join(lines)


def results_in(path: Path | None, tier: str) -> dict[str, dict]:
    """The results of this tier in a file of earlier ones, by name of the mutant."""
    if path is None or not path.exists():
        return {}
    results = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    counts = lambda x: x["tier"] == tier or (tier == "full" and x["noticed"])
    return {result["name"]: result for result in results if counts(result)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=ALLOWED, default="quick", help="which tests run")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants, not all")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are tried at a time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="lines are added to this file")
    parser.add_argument("--allow", type=int, help="mutants that may be left; 10 %%, none in full")
    parser.add_argument("--skip-check", action="store_true", help="the tests are known to pass")
    parser.add_argument("--list", action="store_true", help="checks and prints the list alone")
    args = parser.parse_args()
    mutants = read_mutants()
    if wrong := problems(mutants):
        sys.exit("\n".join(wrong))
    if unknown := set(args.only or ()) - {mutant.name for mutant in mutants}:
        sys.exit(f"unknown: {', '.join(sorted(unknown))}")
    mutants = [m for m in mutants if args.only is None or m.name in args.only]
    if args.list:
        for mutant in mutants:
            print(f"{mutant.area}: {mutant.name}: {mutant.file}: {mutant.old} -> {mutant.new}")
        return
    version = tuple(int(part) for part in metadata.version("jax").split(".")[:2])
    if version < OLDEST_JAX:
        sys.exit(f"JAX {'.'.join(map(str, OLDEST_JAX))} or newer is needed, which runs all tests")

    results = results_in(args.out, args.tier)
    waiting = [mutant for mutant in mutants if mutant.name not in results]

    def done(result: dict) -> None:
        results[result["name"]] = result
        line = json.dumps(result)
        print(line, flush=True)
        if args.out is not None:
            with args.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        number = sum(mutant.name in results for mutant in mutants)
        print(f"{number} of {len(mutants)} tried", file=sys.stderr, flush=True)

    if waiting:
        run_all(waiting, args.tier, jobs=args.jobs, check=not args.skip_check, done=done)
    noticed = {mutant.name for mutant in mutants if results[mutant.name]["noticed"]}
    print(table(mutants, noticed))
    left = len(mutants) - len(noticed)
    allowed = int(ALLOWED[args.tier] * len(mutants)) if args.allow is None else args.allow
    sys.exit(f"{left} mutants were not noticed, {allowed} may be" if left > allowed else None)


if __name__ == "__main__":
    main()
