"""Runs the sample and some tests with the lowest versions of the dependencies that are declared.

    python scripts/check_lowest_versions.py --python python3.11

Installs the package in a fresh environment, once by itself and then with the extra `test`, where uv
takes the lowest version of everything that pyproject.toml names. What these need in turn is as new
as it can be. Ends with 1, and says why, if anything goes wrong.
"""

import argparse
import os
import pathlib
import sys
import tempfile

from smoke_wheel import ROOT, SmokeError, check_results, copy_source, run

# What depends on packages that change: checkpoints, exports, the viewer, videos, the optimiser.
TESTS = [
    "tests/checkpoints",
    "tests/export",
    "tests/viewer",
    "tests/test_video.py",
    "tests/test_stablehlo.py",
    "tests/training/test_optimizer.py",
]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--python",
        default="python3.11",
        help="the Python to use: the oldest that is supported, for which all have wheels",
    )
    parser.add_argument("--tests", nargs="*", default=TESTS, help="files and folders; none to skip")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lowest_versions_") as folder:
        try:
            check(pathlib.Path(folder), args.python, args.tests)
        except SmokeError as error:
            sys.exit(f"check_lowest_versions: error: {error}")


def check(folder: pathlib.Path, python: str, tests: list[str]) -> None:
    """Installs and runs everything below `folder`."""
    binaries = "Scripts" if os.name == "nt" else "bin"
    tools, environment = folder / "tools", folder / "environment"
    own = environment / binaries / "python"
    source = copy_source(folder / "source")
    run("making environments", [sys.executable, "-m", "venv", tools], cwd=folder)
    run("installing uv", [tools / binaries / "python", "-m", "pip", "install", "uv"], cwd=folder)
    uv = tools / binaries / "uv"
    run("finding Python", [uv, "venv", "--python", python, environment], cwd=folder)
    install = [uv, "pip", "install", "--python", own, "--resolution", "lowest-direct"]
    run("installing the package", [*install, source], cwd=folder)
    versions = run("listing versions", [uv, "pip", "freeze", "--python", own], cwd=folder)
    print(*(line for line in versions.splitlines() if "==" in line))
    command = environment / binaries / "vggt-jax"
    run("vggt-jax doctor", [command, "doctor"], cwd=folder)
    sample = source / "vggt_jax" / "samples" / "cellar"
    run("vggt-jax infer", [command, "infer", sample, "--out", "out"], cwd=folder)
    check_results(folder / "out", len(list(sample.glob("*.jpg"))))
    if not tests:
        return
    run("installing the extra test", [*install, f"{source}[test]"], cwd=folder)
    pytest = [environment / binaries / "pytest", "-q", "-p", "no:cacheprovider", *tests]
    print(run("tests", pytest, cwd=ROOT).splitlines()[-1])


if __name__ == "__main__":
    main()
