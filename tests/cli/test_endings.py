"""vggt_jax.cli.endings: signals end a command tidily, with a word, wherever it is at that time."""

import signal
import subprocess
import sys

import pytest

# A program that says that it is ready, is somewhere for long, and cleans up.
_PROGRAM = """
import gc, hashlib, pathlib, signal, sys, time
from vggt_jax.cli import endings

# What runs in the background, as tests may, begins with some of them ignored.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
endings._PATIENCE = 0.5

def program():
    from vggt_jax.files import output_folder

    with output_folder(pathlib.Path(sys.argv[1]), overwrite=False) as folder:
        (folder / "half").write_text("half")
        WHERE
    return 0

endings.run_program(program, "a-program")
"""
_WHERE = {
    "python": 'print("ready", flush=True); time.sleep(60)',
    # An exception raised in a callback of the garbage collector is lost, as in JAX's.
    "gc": """
        def callback(phase, info):
            if not said:
                said.append(1)
                print("ready", flush=True)
                time.sleep(1)
        said = []
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(60)""",
    # Not in Python at all, as while XLA compiles.
    "compiled": """
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000_000)""",
}


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "hung up"),
    ],
)
@pytest.mark.parametrize("where", ["python", "gc", "compiled"])
def test_signals_end_a_program(tmp_path, number, code, word, where):
    if where != "python" and number == signal.SIGHUP:
        pytest.skip("as SIGTERM")
    text = _PROGRAM.replace("        WHERE", "        " + _WHERE[where].lstrip("\n "))
    process = subprocess.Popen(
        [sys.executable, "-c", text, tmp_path / "out"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (code, f"a-program: {word}\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_that_comes_while_python_shuts_down_is_not_lost(tmp_path):
    where = """
        def at_the_end():
            print("ready", flush=True)
            time.sleep(60)
        import atexit
        atexit.register(at_the_end)"""
    program = _PROGRAM.replace("        WHERE", where)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
    assert (tmp_path / "out" / "half").is_file()


def test_a_pipe_that_nobody_reads_ends_it_quietly():
    text = "from vggt_jax.cli import endings\nendings.run_program(lambda: print('x' * 10**6, flush=True) or 0, 'a')"
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 128 + signal.SIGPIPE


def test_a_program_starts_without_jax():
    """So that Ctrl-C is answered while JAX is being imported, which takes seconds."""
    text = "import sys, vggt_jax.cli, vggt_jax.cli.endings; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", text], check=False).returncode == 0
