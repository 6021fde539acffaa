"""The server with a model in place of the stand-in: many clients, some of which fail or go."""

import concurrent.futures
import contextlib
import os

import numpy as np
import pytest
from stand_in import served

import vggt_jax
from vggt_jax import InputError
from vggt_jax.pipeline import inputs
from vggt_jax.pipeline.options import Options
from vggt_jax.serving import Limits, ModelRunner, Queue

pytest.importorskip("fastapi", reason="needs FastAPI")
pytest.importorskip("httpx", reason="needs httpx")

from vggt_jax.serving.api import create_api  # noqa: E402
from vggt_jax.serving.client import infer_on_server  # noqa: E402
from vggt_jax.serving.page import sample_files  # noqa: E402

# More take longer: 50 are some minutes on two cores.
CLIENTS = int(os.environ.get("VGGT_JAX_TEST_CLIENTS", "10"))


def test_small_names_the_model_that_ships():
    assert ModelRunner()._model("small") is inputs.load(Options())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_client_gets_what_infer_gives_for_its_photographs(tmp_path, monkeypatch, tiny):
    """More clients than may wait; every fifth sends a file that is no picture, every seventh goes
    while it waits."""
    monkeypatch.setattr("vggt_jax.serving.api._RETRY_SECONDS", 0.2)
    photographs = list(map(str, sample_files()))
    no_picture = tmp_path / "no.png"
    no_picture.write_bytes(b"no picture")
    vggt_jax.save_model(tiny(), tmp_path / "model")
    runner = ModelRunner([str(tmp_path / "model")], limits=Limits(queue=CLIENTS // 3))

    def goes_after(steps):
        def say(step):
            steps.append(step)
            if len(steps) > 1:
                raise KeyboardInterrupt

        return say

    def client(i):
        mine = [photographs[i % 8], photographs[(i + 1 + i // 8) % 8]]
        if i % 5 == 4:
            with pytest.raises(InputError, match=r"no\.png"):
                infer_on_server(url, [mine[0], no_picture])
            return None
        if i % 7 == 6:
            with contextlib.suppress(KeyboardInterrupt):
                infer_on_server(url, mine, say=goes_after([]))
            return None
        return mine, infer_on_server(url, mine)

    with Queue(runner, Limits(queue=CLIENTS // 3)) as queue:
        with served(create_api(queue, runner.models)) as url:
            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                results = list(pool.map(client, range(CLIENTS)))
    assert queue.num_waiting == 0
    found = [x for x in results if x is not None]
    assert len(found) >= CLIENTS * 2 // 3 - 1
    model = vggt_jax.load_model(tmp_path / "model")
    for mine, recon in found[:: max(1, len(found) // 4)]:
        expected = vggt_jax.infer(mine, model=model)
        assert recon.names == expected.names
        for name in ("depth", "camera_from_world", "intrinsics", "world_points"):
            np.testing.assert_array_equal(getattr(recon, name), getattr(expected, name), name)
