"""The web page: photographs or a video in, a reconstruction to look at and to download."""

import importlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import vggt_jax
from vggt_jax import weights
from vggt_jax.errors import InputError
from vggt_jax.images.files import natural_key
from vggt_jax.serving.api import checked, place_of
from vggt_jax.serving.jobs import FullError, JobOptions, Queue

SAMPLE = Path(vggt_jax.__file__).parent / "samples" / "cellar"
_ATTENTION = {
    "everything (dense)": "dense",
    "automatic": "auto",
    "a sample of 8192 patches": "keys=8192",
    "25 % of the blocks": "keep=25",
    "10 % of the blocks": "keep=10",
}
_DOWNLOADS = {
    "glb": "GLB",
    "ply": "PLY",
    "colmap": "COLMAP",
    "nerfstudio": "nerfstudio",
    "npz": "NumPy",
}
_CSS = "footer { display: none !important; }"


def create_page(queue: Queue, models: Sequence[str]) -> Any:
    """The page, as Gradio's Blocks.

    Args:
        queue: does the jobs.
        models: names that people may choose, the default first.

    Raises:
        InputError: Gradio is not installed.
    """
    gr = import_gradio()
    with gr.Blocks(title="vggt-jax", analytics_enabled=False) as page:
        gr.Markdown(
            "# vggt-jax\nPhotographs or a video in; cameras, depth and points out. "
            "Nothing leaves the machine that serves this page."
        )
        with gr.Row():
            with gr.Column(scale=1):
                files = gr.File(
                    label="Photographs, two or more, or a video",
                    file_count="multiple",
                    type="filepath",
                    height=180,
                    elem_id="files",
                )
                sample = gr.Button(
                    "Take the photographs of a cellar that ship with it", elem_id="sample"
                )
                model = gr.Dropdown(list(models), value=models[0], label="Model", elem_id="model")
                frames = gr.Slider(
                    2, queue.limits.frames, value=min(20, queue.limits.frames), step=1,
                    label="Frames of a video",
                )  # fmt: skip
                attention = gr.Dropdown(
                    list(_ATTENTION), value=next(iter(_ATTENTION)),
                    label="What attention over all photographs sees",
                )  # fmt: skip
                start = gr.Button("Reconstruct", variant="primary", elem_id="start")
                stop = gr.Button("Stop")
                report = gr.Markdown(elem_id="report")
            with gr.Column(scale=2):
                scene = gr.Model3D(
                    label="Points and cameras; drag to turn, scroll to come closer",
                    height=480,
                    clear_color=(1.0, 1.0, 1.0, 1.0),
                    elem_id="scene",
                )
                overview = gr.Image(
                    label="Photographs, depth, confidence, and the scene from above",
                    elem_id="overview",
                )
                with gr.Row():
                    buttons = {
                        name: gr.DownloadButton(
                            f"Download {label}", interactive=False, elem_id=name
                        )
                        for name, label in _DOWNLOADS.items()
                    }
        made = gr.State()  # What the last job made, until it is shown; None where it made nothing.
        sample.click(lambda: sample_files(), outputs=files, api_name=False)

        def reconstruct(paths: Any, model: str, frames: int, attention: str) -> Iterator[tuple]:
            if not paths:
                yield "**Choose photographs or a video first.**", None
                return
            for news in steps_of(queue, models, paths, model, int(frames), _ATTENTION[attention]):
                yield (news, None) if isinstance(news, str) else (news[0], news[1:])

        def show(made: tuple | None) -> list:
            if made is None:  # What is there stays until there is something new.
                return [gr.skip()] * (2 + len(buttons))
            _, glb, picture, files = made
            shown = [
                gr.DownloadButton(value=files.get(name), interactive=name in files)
                for name in buttons
            ]
            return [glb, picture, *shown]

        running = start.click(
            reconstruct,
            inputs=[files, model, frames, attention],
            outputs=[report, made],
            concurrency_limit=None,
            api_name=False,
        )
        # Apart from the news: the model's canvas does not appear as part of a running generator.
        running.success(
            show, inputs=made, outputs=[scene, overview, *buttons.values()], api_name=False
        )
        stop.click(lambda: "Stopped.", outputs=report, cancels=[running], api_name=False)
    return page


def sample_files() -> list[str]:
    """The photographs that ship with the package."""
    return sorted(str(path) for path in SAMPLE.glob("*.jpg"))


def steps_of(
    queue: Queue,
    models: Sequence[str],
    paths: Sequence[str],
    model: str,
    frames: int,
    attention: str,
) -> Iterator[Any]:
    """Puts files into the queue and tells how far they are.

    Yields:
        What to tell a person; at last a text, the id of the job, its GLB, its overview, and files
        to download by name.
    """
    sources = sorted(map(Path, paths), key=natural_key)
    names = [path.name for path in sources]
    is_one = len(names) == 1
    options = JobOptions(model=model, attention=attention, frames=frames if is_one else None)
    try:
        checked(names, options, models, queue)
        total = sum(path.stat().st_size for path in sources)
        if total > queue.limits.megabytes * 10**6:
            raise InputError(f"{total / 1e6:,.0f} MB are more than {queue.limits.megabytes}")
        folder = queue.new_folder()
        placed = [place_of(folder / "uploads", i, name) for i, name in enumerate(names)]
        for source, place in zip(sources, placed, strict=True):
            shutil.copyfile(source, place)
        job = queue.submit(folder, placed, options)
    except InputError as error:
        yield f"**{error}**"
        return
    except FullError as error:
        yield f"**{error}; try again in a while.**"
        return
    try:
        while job.state in ("queued", "running"):
            place = queue.place(job)
            yield f"{place - 1} jobs come first" if place > 1 else f"{job.step} ..."
            queue.wait(job, 1.0)
        if job.state != "done":
            yield f"**{job.error or job.state}**"
            return
        yield "writing files to download ..."
        files, problems = {}, []
        for name, label in _DOWNLOADS.items():
            try:
                files[name] = str(queue.exported(job, name))
            except InputError as error:
                problems.append(f"{label}: {error}")
        picture = str(queue.exported(job, "overview"))
    finally:
        if job.state in ("queued", "running"):  # The browser has gone, or somebody stopped it.
            queue.cancel(job)
    made_by = job.summary["provenance"]
    seconds = job.ended - job.created
    text = f"{job.summary['frames']} frames by {made_by.get('model')} in {seconds:.0f} s"
    notes = [f"Note: {weights.SAID_OF_RESULTS}"] * bool(made_by.get("is_small")) + problems
    yield "\n\n".join([text, *notes]), job.id, files.get("glb"), picture, files


def mount_page(api: Any, page: Any, queue: Queue) -> Any:
    """The API with the page at its root."""
    gr = import_gradio()
    return gr.mount_gradio_app(
        api,
        page,
        path="/",
        max_file_size=queue.limits.megabytes * 10**6,
        allowed_paths=[str(queue.folder), str(SAMPLE)],
        show_error=True,
    )


def import_gradio() -> Any:
    """The module gradio, which shall tell nobody that it is used.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise InputError(
            f"the page needs {error.name}; install it with: pip install 'vggt-jax[app]'"
        ) from error
