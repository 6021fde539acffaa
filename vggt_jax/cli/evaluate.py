"""`vggt-jax evaluate`."""

import ast
import dataclasses
import datetime
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal

import tqdm
import tyro

from vggt_jax.cli.attending import (
    Attending,
    OptionalInt,
    OptionalPath,
    OptionalText,
)
from vggt_jax.cli.generated import Flag, in_dashes, options_of
from vggt_jax.errors import InputError, printable
from vggt_jax.pipeline.options import Options

# Of the options of a scene, those that a protocol leaves open.
_TAKEN = ("config", "camera_source", "compute_dtype", "memory_check")
_ALL = "all"


@dataclasses.dataclass(frozen=True, kw_only=True)
@options_of(
    Options,
    take=_TAKEN,
    as_types={
        "config": Path | None,
        "compute_dtype": Literal["float32", "bfloat16"] | None,
    },
)
class Evaluate(Attending):
    """Evaluate a model on a data set as a published evaluation does, and compare with its numbers.

    Writes a line of JSON a sequence, and goes on where an earlier run of the same kind ended.

        vggt-jax evaluate --list
        vggt-jax evaluate 7scenes data/7scenes --protocol pi3 --check
        vggt-jax evaluate 7scenes data/7scenes --protocol pi3 --model facebook/VGGT-1B
        --sparse-ratio 0.75 --out results.jsonl
    """

    dataset: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="DATASET", help_behavior_hint="")
    ] = None
    """Which data set: re10k, co3d, tanks, eth3d, 7scenes, nrgbd, dtu or scannet."""
    root: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="ROOT", help_behavior_hint="")
    ] = None
    """Its folder; which layout it has, its files tell."""
    protocol: str = "pi3"
    """Whose evaluation: pi3, vggt, cut3r, fastvggt, paper and others; --list tells for which data
    sets."""
    model: OptionalText = None
    """Checkpoint, as `vggt-jax infer` takes it; by default the small model that ships with the
    project."""
    out: OptionalPath = None
    """File of results to write, such as results.jsonl."""
    list: Flag = False
    """Print protocols and published numbers, of a folder its sequences and frames, and stop."""
    check: Flag = False
    """Check whether the data is complete and its truth scores perfectly against itself, and
    stop."""
    limit: OptionalInt = None
    """Evaluate so many sequences only, the first ones."""
    sequences: tuple[str, ...] = ()
    """Names of sequences, or all, instead of those of the protocol."""
    num_frames: OptionalInt = None
    """Frames of a sequence, where the protocol has a choice of it: tanks (0 takes all), scannet
    and the random ones."""
    frame_list: OptionalPath = None
    """A JSON file of the frames of each sequence, {"name": [0, 5, ...]}, such as a published
    one, instead of those of the protocol."""
    data: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...", help_behavior_hint="")
    ] = ()
    """Options of the data set, as its class has them: depth=raw (7scenes), images=pi3 masked=1,2
    (eth3d), split=train (co3d), light=0 (dtu) and others."""
    size: Annotated[
        tuple[int, int] | None, tyro.conf.arg(metavar="HEIGHT WIDTH", help_behavior_hint="")
    ] = None
    """Stretch images to this size instead of that of the protocol."""
    points: Annotated[
        Literal["depth", "head"] | None,
        tyro.conf.arg(metavar="{depth,head}", help_behavior_hint=""),
    ] = None
    """Where predicted points come from; by default the better of what the model has."""
    pad_frames_to: int = 0
    """Pad sequences of fewer frames to so many, so that all share one compiled program; changes no
    result."""
    devices: OptionalInt = None
    """How many devices sequences are shared out among: each has a copy of the model, and sequences
    of its own. By default one."""
    published_tools: Flag = False
    """Let Open3D and evo compute ICP, normals and trajectories, as the published code does; they
    come with the extra evaluation."""

    def run(self) -> int:
        from vggt_jax.evaluation.datasets import DATASETS

        if self.dataset is not None and self.dataset not in DATASETS:
            raise InputError(f"no data set {self.dataset!r}; there are {', '.join(DATASETS)}")
        if self.list and self.root is None:
            _print_protocols(self.dataset)
            return 0
        if self.dataset is None or self.root is None:
            raise InputError("name a data set and its folder, or ask for --list")
        for name, least in (("limit", 1), ("num_frames", 0), ("pad_frames_to", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")
        if self.published_tools:
            _check_tools()
        try:
            return self._run()
        except InputError as error:
            raise InputError(in_dashes(str(error), Evaluate)) from error

    def _run(self) -> int:
        from vggt_jax.evaluation.datasets import open_dataset
        from vggt_jax.evaluation.protocols.truth import choose, listed

        assert self.dataset is not None and self.root is not None
        protocol = self._protocol()
        dataset = open_dataset(self.dataset, self.root, **dict(protocol.opened))
        names = listed(protocol, dataset)
        if _ALL in self.sequences or not set(self.sequences) <= set(names):
            protocol = dataclasses.replace(protocol, only=(), left_out=())
            names = listed(protocol, dataset)
        if unknown := [x for x in self.sequences if x not in (_ALL, *names)]:
            raise InputError(f"--sequences {unknown[0]}: {self.root} has no such sequence")
        only = () if _ALL in self.sequences else self.sequences
        if self.size is not None and any(side < 14 or side % 14 for side in self.size):
            raise InputError(f"--size {self.size} must be multiples of 14, such as 392 518")
        found = choose(protocol, dataset, names, only=only, limit=self.limit)
        chosen = [*found.items()]
        if not chosen:
            _say_problems(dataset.problems)
            raise InputError(
                f"{self.root}: holds none of the sequences of {protocol.name}; --sequences all "
                "takes those that are there"
            )
        if self.list:
            for name, places in chosen:
                print(printable(f"{name}: {len(places)} frames: {' '.join(map(str, places))}"))
            code = 0
        elif self.check:
            code = _check(protocol, dataset, chosen)
        else:
            code = self._evaluate(protocol, dataset, chosen)
        _say_problems(dataset.problems)
        return code

    def _protocol(self) -> Any:
        """The protocol with what options change of it."""
        from vggt_jax.evaluation.protocols import protocol_for
        from vggt_jax.evaluation.protocols.frames import Listed

        assert self.dataset is not None
        protocol = protocol_for(self.protocol, self.dataset)
        if self.frame_list is not None:
            if self.num_frames is not None:
                raise InputError("--frame-list says which frames; leave out --num-frames")
            protocol = dataclasses.replace(protocol, frames=Listed.of(_read_list(self.frame_list)))
        elif self.num_frames is not None:
            frames = protocol.frames.with_count(self.num_frames)
            protocol = dataclasses.replace(protocol, frames=frames)
        if self.data:
            opened = dict(protocol.opened) | dict(map(_option, self.data))
            protocol = dataclasses.replace(protocol, opened=tuple(opened.items()))
        if self.size is not None:
            resizing = dataclasses.replace(protocol.resizing, exactly=self.size)
            protocol = dataclasses.replace(protocol, resizing=resizing)
        return protocol

    def _evaluate(self, protocol: Any, dataset: Any, chosen: Any) -> int:
        import jax

        import vggt_jax
        from vggt_jax.cli.reconstruct_files import keep_compiled_programs
        from vggt_jax.evaluation.protocols.results import FORMAT, VERSION, ResultFile
        from vggt_jax.pipeline.evaluating import Evaluation
        from vggt_jax.pipeline.inputs import load
        from vggt_jax.pipeline.placing import chosen_devices

        if self.out is None:
            raise InputError("name a file of results to write with --out")
        devices = chosen_devices(self.devices, here=True) or [None]
        keep_compiled_programs()
        options = Options(
            **{name: getattr(self, name) for name in _TAKEN},
            model=self.model,
            attention=self.scene_attention(),
        )
        evaluation = Evaluation(
            protocol=protocol,
            dataset=dataset,
            model=load(options),
            options=options,
            points=self.points,
            pad_to=self.pad_frames_to,
            tools="published" if self.published_tools else "own",
        )
        of_results = options.of_results()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "dataset": self.dataset,
            "layout": dataset.layout,
            "protocol": protocol.to_dict(),
            "model": self.model or "small",
            "attention": of_results["attention"],
            "camera_source": options.camera_source,
            "compute_dtype": of_results["compute_dtype"],
            "points": evaluation.point_source,
            "tools": evaluation.tools,
            "vggt_jax": vggt_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        file = ResultFile(path=self.out, about=about)
        lines = _run_sequences(evaluation, chosen, file, devices)
        scored = [line for line in lines if "metrics" in line]
        _print_results(self, protocol, scored, len(lines))
        return 0 if len(scored) == len(lines) else 1


def _run_sequences(evaluation: Any, chosen: list, file: Any, devices: list) -> Any:
    """The lines of all sequences, those of an earlier run among them, in their order."""
    import jax

    from vggt_jax.pipeline.evaluating import evaluate_sequence
    from vggt_jax.pipeline.memory import out_of_memory_is_an_input_error
    from vggt_jax.pipeline.workers import share_out

    names = {name for name, _ in chosen}
    done = {line["sequence"]: line for line in file.open() if line["sequence"] in names}
    if done:
        print(f"{len(done)} of {len(chosen)} sequences are done: {file.path}", file=sys.stderr)
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            tqdm.tqdm.write(f"vggt-jax: {text}", file=sys.stderr)

    telling = threading.Lock()  # Devices have threads of their own.

    def work(device, sequences):
        here = evaluation
        if device is not None:
            model = jax.device_put(evaluation.model, device)
            here = dataclasses.replace(evaluation, model=model)
        for name, places in sequences:
            bar.set_description(name)
            try:
                with out_of_memory_is_an_input_error(len(places), "fewer --num-frames"):
                    line = evaluate_sequence(here, name, places, say=say)
            except InputError as error:
                line = {"sequence": name, "error": str(error)}
                tqdm.tqdm.write(printable(f"vggt-jax: {name}: {error}"), file=sys.stderr)
            with telling:
                file.add(line)
                done[name] = line
                bar.update()

    waiting = [(name, places) for name, places in chosen if name not in done]
    with tqdm.tqdm(total=len(chosen), initial=len(done), unit="sequence", disable=None) as bar:
        share_out(waiting, work, devices)
    return [done[name] for name, _ in chosen]


def _print_results(command: Evaluate, protocol: Any, scored: Any, total: int) -> None:
    from vggt_jax.evaluation.protocols.base import ALL
    from vggt_jax.evaluation.protocols.results import aggregated, table

    print(
        f"{command.dataset}, {protocol.name}: {len(scored)} of {total} sequences -> {command.out}"
    )
    if not scored:
        return
    ours = aggregated(protocol, scored)
    sparsity = sum(line["sparsity"] for line in scored) / len(scored)
    how = f"{sparsity:.1%} left out" if sparsity else "dense"
    label = f"{command.model or 'small model'}, {how}"
    count = getattr(protocol.frames, "count", None) or ALL
    for line in table(protocol, ours, label=label, count=count).split("\n"):
        print(printable(line))
    for note in protocol.notes:
        print(f"note: {note}")
    if command.size is not None or command.sequences or command.limit or command.frame_list:
        print("note: size, sequences or frames are not those of the protocol")
    if command.data:
        print(printable(f"note: the data set was opened with {', '.join(command.data)}"))


def _check(protocol: Any, dataset: Any, chosen: Any) -> int:
    """Prints a line a sequence; 1 if anything is wrong."""
    from vggt_jax.pipeline.evaluating import check_truth

    wrong = 0
    for name, places in chosen:
        faults = []
        (found,) = dataset.check([name])
        faults += found.lines
        if not found.consistent:
            faults.append(
                f"depth and cameras of its frames disagree (by {found.disagreement:.1%}; "
                f"{found.agreeing:.0%} of the pixels agree)"
            )
        try:
            for metric, (value, best) in check_truth(protocol, dataset, name, places).items():
                faults.append(f"the truth against itself has {metric} {value:.4g}, not {best:g}")
        except InputError as error:
            faults.append(str(error))
        wrong += bool(faults)
        print(printable(f"{name}: {len(places)} frames, {'; '.join(faults) or 'good'}"))
    print(f"{len(chosen) - wrong} of {len(chosen)} sequences are good")
    return 1 if wrong else 0


def _print_protocols(only: str | None) -> None:
    from vggt_jax.evaluation.datasets import DATASETS
    from vggt_jax.evaluation.protocols import PROTOCOLS

    for name, kind in DATASETS.items():
        if only not in (None, name):
            continue
        protocols = [x for (of, _), x in PROTOCOLS.items() if of == name]
        print(f"{name}: {kind.about.title} ({kind.about.licence}), {kind.about.source}")
        if only is not None:
            for layout in kind.layouts:
                print(f"  files, {layout.name}: {layout.looked_for}")
        for protocol in protocols:
            print(f"  {protocol.name}: {protocol.source}")
            if only is None:
                continue
            for note in protocol.notes:
                print(f"    note: {note}")
            for row in protocol.published:
                numbers = ", ".join(f"{metric} {value:g}" for metric, value in row.metrics)
                count = "" if row.count is None else f", {row.count or 'all'} frames"
                how = "" if not row.sparsity else f" {row.sparsity:.1%}"
                print(f"    {row.model}, {row.attention}{how}{count}: {numbers} ({row.source})")


def _option(text: str) -> tuple[str, Any]:
    """Name and value of "depth=raw", "masked=1,2" or "min_viewpoint_quality=None"."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise InputError(f"--data {text}: must be NAME=VALUE, as in depth=raw")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, {"true": True, "false": False}.get(value.lower(), value)


def _read_list(path: Path) -> dict[str, list[int]]:
    from vggt_jax.files import read_json

    content = read_json(path)
    is_places = lambda x: isinstance(x, list) and all(type(i) is int and i >= 0 for i in x)
    if not isinstance(content, dict) or not all(map(is_places, content.values())):
        raise InputError(f'{path}: must be {{"name of a sequence": [0, 5, ...], ...}}')
    return content


def _check_tools() -> None:
    import importlib.util

    missing = [x for x in ("evo", "open3d") if importlib.util.find_spec(x) is None]
    if missing:
        raise InputError(
            f"--published-tools needs {' and '.join(missing)}: pip install 'vggt-jax[evaluation]'"
        )


def _say_problems(problems: Any) -> None:
    for line in problems.lines():
        print(f"vggt-jax: {line}", file=sys.stderr)
