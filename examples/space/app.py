"""The web page as a Hugging Face Space, or wherever a platform names the port."""

import os

import uvicorn

from vggt_jax.serving import Limits, ModelRunner, Queue
from vggt_jax.serving.api import create_api
from vggt_jax.serving.page import create_page, mount_page

LIMITS = Limits(queue=8, files=40, frames=40, megabytes=200, kept=20, hours=2)


def main() -> None:
    runner = ModelRunner(os.environ.get("MODELS", "small").split(), limits=LIMITS)
    runner.warm_up()
    with Queue(runner, LIMITS) as queue:
        api = create_api(queue, runner.models)
        app = mount_page(api, create_page(queue, runner.models), queue)
        port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
        uvicorn.run(app, host="0.0.0.0", port=port, log_level="warning")


if __name__ == "__main__":
    main()
