"""From which agreement with itself on a result of a model can be relied on.

    python scripts/calibrate_confidence.py MODEL.safetensors --scenes PHOTOGRAPHS
    python scripts/calibrate_confidence.py MODEL.safetensors --scenes PHOTOGRAPHS --at-most 0.1
    python scripts/calibrate_confidence.py MODEL.safetensors --lines runs/confidence.jsonl

A window of frames whose cameras have an AUC@30 below 0.3 is called no reconstruction. Windows are
of scenes of the synthetic world, and of photographs with known poses: PHOTOGRAPHS are folders of
scenes with `transforms.json`, as scripts/evaluate_photographs.py takes them. Compares scores of a
result that need no truth, and chooses the least `vggt_jax.self_agreement` for which at most so many
(`--at-most`) of the results that reach it are none, each scene and each split of the synthetic
world counting alike. It is chosen on the synthetic world and every second scene in the order of
names; error rates are of the others, which it has not seen, and of windows of frames of different
scenes, which nobody can reconstruct.

Writes it into the checkpoint, from which `vggt_jax.load_model` has it, so that results below it
warn. Beside OUT go a line for each window (.jsonl), the tables (.md) and a picture (.png). With
`--lines` nothing runs: the threshold is chosen anew from such lines, for another `--at-most`.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from evaluate_photographs import read_scene, windows

import vggt_jax
from vggt_jax.checkpoints import annotate, is_native
from vggt_jax.errors import InputError
from vggt_jax.evaluation import auc_at, pair_errors
from vggt_jax.scene.self_agreement import Part, camera_agreement, depth_agreement
from vggt_jax.synthetic import SPLITS, render_scenes

NONE_BELOW = 0.3  # AUC@30: below it a result is no reconstruction.
SPLITS_USED = tuple(name for name in SPLITS if not name.endswith("train"))
UNRELATED = "unrelated photographs"
SCORES = {
    "depth_confidence": "mean log confidence of depth",
    "points_confidence": "mean log confidence of points",
    "cameras": "agreement of cameras and points",
    "depth": "agreement of depth between frames",
    "agreement": "**self_agreement**, their product",
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path, help="checkpoint of ours, which is changed")
    parser.add_argument(
        "--scenes", type=pathlib.Path, nargs="+", help="folders of scenes with transforms.json"
    )
    parser.add_argument("--lines", type=pathlib.Path, help="windows that were measured before")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("confidence"), help="without ending"
    )
    parser.add_argument(
        "--at-most",
        type=float,
        default=0.05,
        help="share of the results without a warning that may be no reconstruction",
    )
    parser.add_argument("--num-scenes", type=int, default=8, help="synthetic ones of each split")
    parser.add_argument(
        "--num-windows", type=int, default=4, help="most of each scene and step, evenly spread"
    )
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, help="side of squares; by default the model's own")
    parser.add_argument(
        "--shape",
        choices=["square", "own"],
        default="own",
        help="of photographs, see scripts/evaluate_photographs.py",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="windows at a time")
    parser.add_argument("--dry-run", action="store_true", help="leave the checkpoint as it is")
    return parser.parse_args()


def main() -> None:
    args = parsed()
    try:
        if not is_native(args.model):
            raise InputError(f"{args.model}: no checkpoint of ours; convert it first")
        if args.lines is not None:
            texts = args.lines.read_text(encoding="utf-8").splitlines()
            lines = [json.loads(text) for text in texts]
        elif args.scenes:
            lines = list(measured(args))
            save_lines(lines, args.out)
        else:
            raise InputError("give --scenes, or --lines of an earlier run")
        report(lines, args)
    except InputError as error:
        print(f"calibrate_confidence: error: {error}", file=sys.stderr)
        sys.exit(2)


def measured(args: argparse.Namespace) -> Iterator[dict]:
    """A line for each window: its kind ("synthetic", "photographs", UNRELATED), scene, AUC@30 and
    SCORES."""
    model = vggt_jax.load_model(args.model)
    size = args.size or model.config.img_size
    folders = scene_folders(args.scenes)

    @jax.jit
    def reconstruct(model, images):
        if images.dtype == jnp.uint8:
            images = images.astype(jnp.float32) / 255
        return vggt_jax.reconstruct(model, images)

    auc_of = jax.jit(lambda found, truth: auc_at(pair_errors(found, truth), 30))

    def judged(kind: str, scene: str, images, poses) -> Iterator[dict]:
        """Of windows [b s ...] of a scene, filled up so that all batches are of one program."""
        for first in range(0, len(images), args.batch_size):
            places = np.minimum(np.arange(first, first + args.batch_size), len(images) - 1)
            recon = jax.device_get(reconstruct(model, images[places]))
            aucs = np.asarray(auc_of(recon.camera_from_world, poses[places]))
            for i in range(min(args.batch_size, len(images) - first)):
                auc = 0.0 if kind == UNRELATED else float(aucs[i])
                of_window = scores_of(jax.tree.map(lambda x, i=i: x[i], recon))
                yield {"kind": kind, "scene": scene, "auc_30": auc, **of_window}
        print(f"{scene}: {len(images)} windows", file=sys.stderr)

    render = jax.jit(
        lambda key, split: render_scenes(
            key, args.batch_size, args.frames, size=(size, size), split=split
        ),
        static_argnames="split",
    )
    for split in SPLITS_USED:
        keys = range(-(-args.num_scenes // args.batch_size))
        drawn = [render(jax.random.key(20_000 + i), split) for i in keys]
        images, poses = (
            np.concatenate([getattr(x, name) for x in drawn])[: args.num_scenes]
            for name in ("images", "camera_from_world")
        )
        yield from judged("synthetic", split, images, poses)
    scenes = []
    for folder in folders:
        read = functools.partial(read_scene, folder, size=size, patch_size=model.config.patch_size)
        frames, poses = read(args.shape)
        if places := list(chosen_windows(len(frames), args)):
            scenes.append(read("square")[0])  # Of one shape, to be mixed.
            yield from judged("photographs", folder.name, frames[places], poses[places])
    if len(held_out := scenes[1::2]) > 1:
        images = mixed(held_out, 4 * args.num_windows, args.frames)
        poses = np.tile(np.eye(3, 4, dtype=np.float32), (*images.shape[:2], 1, 1))
        yield from judged(UNRELATED, UNRELATED, images, poses)


def place(out: pathlib.Path, ending: str) -> pathlib.Path:
    """A file beside OUT, in a folder that is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.with_name(f"{out.name}.{ending}")


def save_lines(lines: Sequence[dict], out: pathlib.Path) -> None:
    """Writes what was measured, for `--lines`."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    place(out, "jsonl").write_text(text, encoding="utf-8")


def scene_folders(given: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Folders with `transforms.json`, in the order of their names.

    Raises:
        InputError: there are fewer than two, so that none could be held out.
    """
    found = {path.parent for folder in given for path in folder.glob("*/transforms.json")}
    if len(found) < 2:
        raise InputError("--scenes: at least two scenes with transforms.json are needed")
    return sorted(found, key=lambda path: (path.name, path))


def chosen_windows(num_frames: int, args: argparse.Namespace) -> Iterator[np.ndarray]:
    """At most `num_windows` for every step, evenly spread over the scene."""
    for step in args.steps:
        there = list(windows(num_frames, args.frames, step))
        number = min(args.num_windows, len(there))
        for i in sorted({round(x) for x in np.linspace(0, len(there) - 1, number)}):
            yield there[i]


def mixed(scenes: Sequence[np.ndarray], num: int, num_frames: int) -> np.ndarray:
    """Windows of frames that are drawn from one scene after another [num num_frames ...]."""
    rng = np.random.default_rng(0)
    draw = lambda i: rng.choice(scenes[i % len(scenes)])
    return np.stack([np.stack([draw(i) for i in range(num_frames)]) for _ in range(num)])


def scores_of(recon: vggt_jax.Reconstruction) -> dict[str, float]:
    """SCORES of one scene in NumPy arrays."""
    part = Part(recon)
    cameras, depth = camera_agreement(part), depth_agreement(part)
    return {
        "depth_confidence": float(np.log(recon.depth_confidence).mean()),
        "points_confidence": float(np.log(recon.world_points_confidence).mean()),
        "cameras": cameras,
        "depth": depth,
        "agreement": cameras * depth,
    }


def chosen(lines: Sequence[dict], at_most: float) -> float:
    """The least agreement for which at most so many of the results that reach it are none, where
    all scenes count alike.

    Raises:
        InputError: there is no such.
    """
    scenes = [line["scene"] for line in lines]
    weights = np.array([1 / scenes.count(scene) for scene in scenes])
    agreement = np.array([line["agreement"] for line in lines])
    is_none = np.array([line["auc_30"] < NONE_BELOW for line in lines])
    for least in np.sort(agreement):
        passed = weights * (agreement >= least)
        if (passed * is_none).sum() <= at_most * passed.sum():
            return float(least)
    raise InputError(f"of the results that agree best, more than {at_most:.0%} are none")


def halves(lines: Sequence[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """Synthetic lines, and those of every second scene of photographs, from the first and from the
    second."""
    names = sorted({line["scene"] for line in lines if line["kind"] == "photographs"})
    of = lambda scenes: [x for x in lines if x["kind"] == "photographs" and x["scene"] in scenes]
    return [x for x in lines if x["kind"] == "synthetic"], of(names[::2]), of(names[1::2])


def counts(lines: Sequence[dict], least: float) -> str:
    """Both kinds of error, as cells of a table."""
    none = [line for line in lines if line["auc_30"] < NONE_BELOW]
    sound = [line for line in lines if line["auc_30"] >= NONE_BELOW]
    passed = lambda part: sum(line["agreement"] >= least for line in part)
    of = lambda number, total: f"{number} of {total} ({number / max(total, 1):.0%})"
    wrong, right = passed(none), passed(sound)
    good = [line for line in sound if line["auc_30"] >= 0.5]
    cells = [of(wrong, wrong + right), of(wrong, len(none)), of(len(sound) - right, len(sound))]
    return " | ".join([*cells, of(len(good) - passed(good), len(good))])


def rank_correlation(score: np.ndarray, auc: np.ndarray) -> float:
    """Spearman's."""
    return float(np.corrcoef(ranks(score), ranks(auc))[0, 1])


def roc_area(score: np.ndarray, is_sound: np.ndarray) -> float:
    """The share of pairs of a sound and an unsound result of which the sound one has the higher
    score; NaN where there are none."""
    number = int(is_sound.sum())
    pairs = number * (len(score) - number)
    if not pairs:
        return float("nan")
    return float((ranks(score)[is_sound].sum() - number * (number + 1) / 2) / pairs)


def ranks(values: np.ndarray) -> np.ndarray:
    """From 1, equal values share the mean of theirs."""
    _, places, number = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number - 1) / 2)[places]


def table_of_scores(lines: Sequence[dict]) -> list[str]:
    """How well each score tells AUC@30: rank correlation, and areas under the ROC curve."""
    kinds = {"all": ("synthetic", "photographs")}
    kinds |= {"synthetic": ("synthetic",), "photographs": ("photographs",)}
    head = [f"rank, {x} | < {NONE_BELOW}, {x} | < 0.5, {x}" for x in kinds]
    rows = [f"| score | {' | '.join(head)} |", "|" + "---|" * (1 + 3 * len(head))]
    for name, words in SCORES.items():
        cells = []
        for of_kind in kinds.values():
            part = [line for line in lines if line["kind"] in of_kind]
            score, auc = (np.array([line[key] for line in part]) for key in (name, "auc_30"))
            found = [rank_correlation(score, auc)]
            found += [roc_area(score, auc >= least) for least in (NONE_BELOW, 0.5)]
            cells += [f"{x:.3f}" for x in found]
        rows.append(f"| {words} | {' | '.join(cells)} |")
    return rows


def report(lines: Sequence[dict], args: argparse.Namespace) -> None:
    """Chooses, prints, saves, and writes into the checkpoint."""
    synthetic, first, second = halves(lines)
    unrelated = [line for line in lines if line["kind"] == UNRELATED]
    least = chosen(synthetic + first, args.at_most)
    # Downwards, so that the window that decided still reaches it.
    least = float(np.floor(least * 1000) / 1000)
    other = chosen(synthetic + second, args.at_most)
    names = lambda part: ", ".join(sorted({line["scene"] for line in part}))
    about = (
        f"Least agreement **{least:.3f}**: chosen for at most {args.at_most:.0%} on the synthetic "
        f"world and {names(first)}; held out: {names(second)}."
    )
    head = [
        "of those without a warning, no reconstruction",
        "of no reconstructions, without a warning",
        f"of AUC@30 from {NONE_BELOW} on, with a warning",
        "of AUC@30 from 0.5 on, with a warning",
    ]
    text = [
        about,
        "",
        f"| windows | {' | '.join(head)} |",
        "|---|---|---|---|---|",
        f"| synthetic | {counts(synthetic, least)} |",
        f"| photographs, chosen on | {counts(first, least)} |",
        f"| **photographs, held out** | {counts(second, least)} |",
        f"| {UNRELATED} | {counts(unrelated, least)} |",
        f"| the other way round ({other:.3f}), held out | {counts(first, other)} |",
        "",
        *table_of_scores(lines),
    ]
    print("\n".join(text))
    place(args.out, "md").write_text("\n".join(text) + "\n", encoding="utf-8")
    draw((synthetic, first, second, unrelated), least, place(args.out, "png"))
    if not args.dry_run:
        annotate(args.model, least_agreement=least)
        print(f"wrote {least:.3f} into {args.model}")


def draw(parts: Sequence[Sequence[dict]], least: float, path: pathlib.Path) -> None:
    """A picture of AUC@30 over the agreement of every window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = ("synthetic", "photographs, chosen on", "photographs, held out", UNRELATED)
    for part, name, mark in zip(parts, names, ".^ox", strict=True):
        x, y = ([line[key] for line in part] for key in ("agreement", "auc_30"))
        axes.scatter(x, y, s=22, marker=mark, alpha=0.7, label=f"{name} ({len(part)})")
    axes.axvline(least, color="black", linewidth=1, label=f"threshold, {least:.3f}")
    axes.axhline(NONE_BELOW, color="gray", linewidth=1, linestyle="--")
    axes.set(xlabel="self_agreement", ylabel="AUC@30", xlim=(0, 1), ylim=(-0.02, 1))
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
