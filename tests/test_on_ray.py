"""Many scenes on a Ray cluster of two machines, one of which is lost in the middle."""

import collections
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="starts a Ray cluster: pip install 'vggt-jax[ray]'",
    ),
]

ROOT = Path(__file__).parents[1]
NUM_SCENES = 9
PATIENCE = 200  # Seconds for anything to happen.
POLL = 0.02


@pytest.fixture
def scenes(tmp_path):
    rng = np.random.default_rng(3)
    for i in range(NUM_SCENES):
        folder = tmp_path / "scenes" / f"room {i}"
        folder.mkdir(parents=True)
        for k in range(3):
            Image.fromarray(rng.integers(0, 256, (28, 42, 3), np.uint8)).save(folder / f"{k}.png")
    return tmp_path / "scenes"


class Cluster:
    """Machines of one CPU each on this one: each is a session of processes."""

    def __init__(self, folder):
        self.folder, self.machines = folder, []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.env = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "RAY_ADDRESS": self.address,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "JAX_PLATFORMS": "cpu",
        }
        if programs := jax.config.jax_compilation_cache_dir:
            self.env |= {
                "JAX_COMPILATION_CACHE_DIR": programs,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            }

    def _start(self):
        where = [f"--address={self.address}"]
        if not self.machines:
            port = self.address.rpartition(":")[2]
            where = ["--head", f"--port={port}", "--include-dashboard=false"]
            where += [f"--temp-dir={self.folder}"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        resources = ["--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000"]
        with open(self.folder / f"machine{len(self.machines)}.log", "w") as log:
            machine = subprocess.Popen(
                [*ray, *resources, *where],
                env={x: y for x, y in self.env.items() if x != "RAY_ADDRESS"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.machines.append(machine)

    def start_two(self):
        """Starts a head and another machine, waits for both, and returns the other."""
        for number in range(2):
            self._start()
            log = self.folder / f"machine{number}.log"
            self.until("Ray does not start", lambda: "Ray runtime started" in log.read_text())
        return self.machines[1]

    def until(self, what, condition):
        """Waits for something, and returns it."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            logs = [log.read_text()[-2000:] for log in sorted(self.folder.glob("*.log"))]
            assert time.monotonic() < end, "\n".join([what, *logs])
            time.sleep(POLL)
        return found

    def lose(self, machine):
        """Ends everything on a machine at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine.pid, signal.SIGKILL)
        machine.wait()
        self.machines.remove(machine)


@pytest.fixture
def cluster():
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Paths of sockets are short.
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        for machine in list(cluster.machines):
            cluster.lose(machine)
        shutil.rmtree(folder, ignore_errors=True)


def holder(out, machine):
    """A process of a machine that holds scenes, and how many; None if there is none."""
    found = collections.Counter()
    for lock in out.glob(".vggt-jax-*.partial/lock"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(lock.read_text().split()[0])
            found[pid] += os.getsid(pid) == machine.pid
    return next(((pid, number) for pid, number in found.items() if number), None)


def results(out):
    return {path.parent.name: path.stat() for path in out.glob("*/predictions.npz")}


@pytest.mark.timeout(600)
def test_a_lost_machine_loses_no_scene_and_nothing_is_written_twice(tmp_path, scenes, cluster):
    out, local = tmp_path / "out", tmp_path / "local"
    command = [sys.executable, "-m", "vggt_jax.cli", "batch", scenes, "--size", "28", "--json"]
    # In a process of its own: compiled as workers compile.
    subprocess.run([*command, "--out", local], env=cluster.env, check=True, capture_output=True)
    command += ["--out", out, "--engine", "ray"]
    other = cluster.start_two()
    with subprocess.Popen(
        list(map(str, command)), env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as driver:
        try:

            def stopped():
                """Stops a worker of the other machine that holds scenes."""
                assert driver.poll() is None, driver.communicate()
                if (found := holder(out, other)) is None:
                    return None
                os.kill(found[0], signal.SIGSTOP)
                if still := holder(out, other):
                    return still
                os.kill(found[0], signal.SIGCONT)  # It has just released them.
                return None

            _, held = cluster.until("no worker on the other machine", stopped)
            cluster.until("nothing is written", lambda: results(out))
            before = results(out)
            assert len(before) < NUM_SCENES
            cluster.lose(other)
            printed, said = driver.communicate(timeout=PATIENCE)
        finally:
            driver.kill()
    said = said.decode()
    assert driver.returncode == 0, said
    report = json.loads(printed)
    assert sorted(report["written"]) == sorted(path.name for path in scenes.iterdir())
    assert report["failed"] == {} and report["elsewhere"] == [] and report["skipped"] == []
    # What the lost worker held was begun again.
    assert 1 <= len(report["twice"]) <= held + 1
    assert all("its machine was lost" in why for why in report["twice"].values())
    assert all(f"begun twice: {name}" in said for name in report["twice"])
    after = results(out)
    for name, state in before.items():  # Nothing was written twice.
        assert (after[name].st_ino, after[name].st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    assert not list(out.glob(".vggt-jax-*"))
    # Values are those of a run on this machine alone, to the last bit.
    for name in after:
        paths = (folder / name / "predictions.npz" for folder in (out, local))
        found, expected = (dict(np.load(path)) for path in paths)
        assert found.keys() == expected.keys()
        for key in found.keys() - {"provenance"}:  # It tells the time.
            np.testing.assert_array_equal(found[key], expected[key], err_msg=f"{name}: {key}")
