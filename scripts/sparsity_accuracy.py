"""What block-sparse attention costs in accuracy: dense against sparse on scenes with truth.

    python scripts/sparsity_accuracy.py --model MODEL --out docs/sparsity_accuracy
    python scripts/sparsity_accuracy.py --model facebook/VGGT-1B --scenes FOLDER --frames 48 --out X

Every setting sees the same scenes: dense attention; at each share of dropped blocks the rules "avg"
and "max" (how blocks are pooled), "hilbert" (avg, with patches along a Hilbert curve), "cdf" (as
many blocks as have a share of the probability; the threshold is fitted, so that about the same
share is dropped), and "random", the floor: as many blocks as "avg" keeps, drawn at random, once for
each of --random-seeds. Blocks are dropped among the patches; special tokens always see and are seen
by everything. With --num-keys also "sample": attention to so many patches, drawn evenly, each of
which stands for those left out around it. With --blocks also "blocks": small blocks along a Hilbert
curve, with a sample of the rest. With --budgets each of these twice, the second time with what a
plan of `vggt-jax calibrate` gives to the layers, on average as much; --calibrate makes such a plan
first, with synthetic scenes of another seed, as OUT_plan.json. With --plans these plans.

Scenes are those of the synthetic world (--split, --num-scenes, --seed) or, with --scenes, of

FOLDER_LAYOUT
Writes OUT.jsonl (a line for the run, one for each setting, with numbers by layer), OUT.md (tables),
OUT.png and OUT_layers.png. --report-only makes the last three anew from OUT.jsonl.
docs/evaluation.md defines every number.
"""

import argparse
import dataclasses
import functools
import json
import math
import operator
import pathlib
import sys
import time

import figures
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from evaluation_scenes import FOLDER_LAYOUT, folder_batches, synthetic_batches

import vggt_jax
from vggt_jax import weights
from vggt_jax.checkpoints.errors import CheckpointError
from vggt_jax.evaluation import pair_errors, scene_metrics
from vggt_jax.layers.scene_attention import SceneAttention

RULES = ("avg", "max", "hilbert", "cdf", "random")
_FRAMES = 48
_ENOUGH_TOKENS = 10_000  # with fewer there are few blocks to choose from
# Where the density of the threshold rule is measured, to interpolate between.
_THRESHOLDS = (0.2, 0.5, 0.75, 0.9, 0.97, 0.995)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table. `dropped`: the share of the blocks that it was asked to leave out."""

    rule: str
    dropped: float
    attention: SceneAttention
    seed: int | None = None
    num_keys: int | None = None
    threshold: float | None = None
    blocks: str | None = None
    budgets: str | None = None
    special: str | None = None

    @property
    def label(self) -> str:
        parts = (
            [self.rule]
            if self.rule in ("dense", "everything")
            else [self.rule, f"{self.dropped:.0%}"]
        )
        parts += [x for x in (self.blocks, self.budgets, self.special) if x is not None]
        return " ".join(parts + ([f"seed {self.seed}"] if self.seed is not None else []))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.replace("FOLDER_LAYOUT", FOLDER_LAYOUT),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", help="checkpoint or hub name, as load_model takes it; the small model without it"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=pathlib.Path("docs/sparsity_accuracy"),
        help="where to write, without extension",
    )
    parser.add_argument(
        "--scenes", type=pathlib.Path, help="folder of scenes instead of the synthetic world"
    )
    parser.add_argument("--num-scenes", type=int, default=32, help="synthetic scenes")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic scenes")
    parser.add_argument(
        "--frames",
        type=int,
        help=f"frames of every scene; by default {_FRAMES}, or of synthetic scenes so many more "
        f"that they have {_ENOUGH_TOKENS:,} tokens",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        help="synthetic: height width; a folder: the side to resize to. By default the model's own",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="scenes at a time")
    parser.add_argument(
        "--dropped",
        type=float,
        nargs="+",
        default=[0.25, 0.5, 0.75, 0.9],
        help="shares of the blocks",
    )
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--num-keys", type=int, nargs="+", default=[], help="sizes of samples")
    parser.add_argument(
        "--blocks",
        nargs="+",
        default=[],
        metavar="QUERIESxKEYS[:SCORED]",
        help="sizes of small blocks, and of the parts of them that are scored (16x4:4)",
    )
    parser.add_argument(
        "--kept", type=float, nargs="+", default=[0.25, 0.1, 0.05], help="shares for --blocks"
    )
    parser.add_argument(
        "--sample-part",
        type=float,
        nargs="+",
        default=[0.2, 0.4, 0.4],
        help="how much of each --kept is the sample",
    )
    parser.add_argument(
        "--sample-special-queries",
        action="store_true",
        help="each sample once more, with queries of special tokens seeing it alone",
    )
    parser.add_argument("--budgets", type=pathlib.Path, help="a plan of `vggt-jax calibrate`")
    parser.add_argument(
        "--calibrate",
        type=int,
        nargs=2,
        metavar=("SCENES", "KEYS"),
        help="make the plan of --budgets with so many synthetic scenes, for so many keys a layer",
    )
    parser.add_argument("--plans", type=pathlib.Path, nargs="+", default=[], help="plans to judge")
    parser.add_argument("--random-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--layers", type=int, nargs="+", help="sparse layers of the trunk; all without it"
    )
    parser.add_argument("--block-q", type=int, default=128)
    parser.add_argument("--block-k", type=int, default=64)
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--max-points", type=int, default=20_000, help="points of a cloud")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    try:
        if not args.report_only:
            run(args)
        report(args.out)
    except (ValueError, CheckpointError) as error:
        sys.exit(f"sparsity_accuracy: error: {error}")


def run(args):
    """Measures everything. OUT.jsonl is written after every batch, for runs that are cut short."""
    start = time.perf_counter()
    model = vggt_jax.load_model(args.model)
    if args.calibrate:
        args.budgets = calibrate(args, model)
    results, names = {}, []
    settings, sizes = None, {}
    for batch in batches_of(args, model):
        names += batch.names
        number_of_scenes = len(batch.names)
        # A last batch that lacks scenes repeats one: another size would compile everything anew.
        size = sizes.setdefault(batch.images.shape[1:], number_of_scenes)
        repeat = np.minimum(np.arange(max(size, number_of_scenes)), number_of_scenes - 1)
        images, truth = jax.tree.map(operator.itemgetter(repeat), (batch.images, batch.truth))
        if settings is None:
            settings = settings_of(args, model, images)
        tokens = encode(model, images, compute_dtype=args.compute_dtype)
        of_dense = None  # the first setting
        progress = tqdm.tqdm(
            settings, desc=f"scenes {len(names) - number_of_scenes + 1} to {len(names)}"
        )
        for setting in progress:
            progress.set_postfix_str(setting.label)
            found = evaluate(args, model, images, tokens, truth, setting.attention, of_dense)
            of_dense = found["cameras"] if of_dense is None else of_dense
            own = operator.itemgetter(slice(number_of_scenes))
            found = jax.tree.map(own, jax.device_get(found))
            results.setdefault(setting, []).append(found)
        about = describe_run(args, model, images, len(names), time.perf_counter() - start)
        dense = results[settings[0]]
        lines = [summarise(setting, found, dense) for setting, found in results.items()]
        text = "".join(
            json.dumps(line, allow_nan=False) + "\n" for line in [{"run": about}, *lines]
        )
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.with_suffix(".jsonl").write_text(text)


def describe_run(args, model, images, num_scenes: int, seconds: float) -> dict:
    """What was measured, on what."""
    frames, height, width = images.shape[1:4]
    return {
        "model": args.model or weights.NAME,
        "scenes": str(args.scenes) if args.scenes else f"synthetic, {args.split}, seed {args.seed}",
        "num_scenes": num_scenes,
        "frames": frames,
        "size": [height, width],
        "tokens": frames * model.layout(images).tokens_per_frame,
        "block_q": args.block_q,
        "block_k": args.block_k,
        "sparse_layers": args.layers,
        "compute_dtype": str(args.compute_dtype or "default"),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "seconds": round(seconds),
        "command": "python scripts/sparsity_accuracy.py " + " ".join(sys.argv[1:]),
    }


def batches_of(args, model):
    if args.scenes is not None:
        if args.size is not None and len(args.size) != 1:
            raise vggt_jax.InputError(f"--size {args.size}: with --scenes give the side alone")
        return folder_batches(
            args.scenes,
            model=model,
            batch_size=args.batch_size,
            num_frames=args.frames or _FRAMES,
            image_side=args.size[0] if args.size else None,
        )
    size = args.size or [model.config.img_size]
    if len(size) > 2:
        raise vggt_jax.InputError(f"--size {size}: give height and width")
    frame = jnp.zeros((1, 1, size[0], size[-1], 3))
    enough = math.ceil(_ENOUGH_TOKENS / model.layout(frame).tokens_per_frame)
    return synthetic_batches(
        num_scenes=args.num_scenes,
        batch_size=args.batch_size,
        num_frames=args.frames or max(_FRAMES, enough),
        size=(size[0], size[-1]),
        split=args.split,
        seed=args.seed,
    )


def calibrate(args, model) -> pathlib.Path:
    """Writes OUT_plan.json, from scenes like those to judge, but of another seed."""
    if args.scenes is not None:
        raise vggt_jax.InputError("--calibrate takes synthetic scenes; use `vggt-jax calibrate`")
    number, num_keys = args.calibrate
    others = dict(vars(args), num_scenes=number, seed=args.seed + 1, batch_size=1)
    scenes = [
        np.asarray(batch.images[0]) for batch in batches_of(argparse.Namespace(**others), model)
    ]
    plan, report = vggt_jax.calibrate(
        scenes,
        model=model,
        num_keys=num_keys,
        min_tokens=0,
        compute_dtype=args.compute_dtype,
        progress=True,
    )
    path = args.out.with_name(args.out.name + "_plan.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    plan.save(path, about=report.to_dict())
    return path


def settings_of(args, model, images) -> list[Setting]:
    """All rows of the table."""
    sparse = functools.partial(
        vggt_jax.BlockSparse,
        block_q=args.block_q,
        block_k=args.block_k,
        layers=args.layers,
        min_tokens=0,
    )
    settings = [
        Setting(rule="dense", dropped=0.0, attention=vggt_jax.Dense()),
        # Dense attention by the sparse code: what it says of the layers is of dense attention.
        Setting(rule="everything", dropped=0.0, attention=sparse(sparse_ratio=0.0)),
    ]
    thresholds = {}
    if "cdf" in args.rules:
        thresholds = fit_thresholds(args, model, images, sparse)
    for dropped in args.dropped:
        of_rule = {
            "avg": sparse(sparse_ratio=dropped),
            "max": sparse(sparse_ratio=dropped, pool_mode="max"),
            "hilbert": sparse(sparse_ratio=dropped, token_order="hilbert"),
        }
        for rule in args.rules:
            new = functools.partial(Setting, rule=rule, dropped=dropped)
            if rule == "cdf":
                threshold = thresholds[dropped]
                settings.append(new(threshold=threshold, attention=sparse(cdf_threshold=threshold)))
            elif rule == "random":
                settings += [
                    new(seed=seed, attention=sparse(sparse_ratio=dropped, random_seed=seed))
                    for seed in args.random_seeds
                ]
            else:
                settings.append(new(attention=of_rule[rule]))
    layout = model.layout(images)
    patches = images.shape[1] * layout.rows * layout.columns
    for num_keys in args.num_keys:
        if num_keys >= patches:
            raise vggt_jax.InputError(
                f"--num-keys {num_keys}: a scene has {patches} patches; choose fewer"
            )
        dropped = round(1 - num_keys / patches, 4)
        new = functools.partial(Setting, rule="sample", dropped=dropped, num_keys=num_keys)
        sampled = vggt_jax.Sampled(num_keys=num_keys, min_tokens=0)
        settings.append(new(attention=sampled))
        if args.budgets:
            plan = with_budgets(args.budgets, num_keys / patches, sampled_share(patches))
            settings.append(new(attention=plan, budgets=args.budgets.stem))
        if args.sample_special_queries:
            sampled = dataclasses.replace(sampled, sample_special_queries=True)
            settings.append(new(attention=sampled, special="special queries too"))
    for size in args.blocks:
        for kept, part in zip(args.kept, args.sample_part, strict=True):
            of_share = blocks_of_share(size, part)
            new = functools.partial(Setting, rule="blocks", dropped=round(1 - kept, 4), blocks=size)
            settings.append(new(attention=of_share(kept)))
            if args.budgets:
                plan = with_budgets(args.budgets, kept, of_share)
                settings.append(new(attention=plan, budgets=args.budgets.stem))
    for path in args.plans:
        plan = vggt_jax.AttentionPlan.load(path).decided()
        settings.append(Setting(rule="plan", dropped=0.0, attention=plan, budgets=path.stem))
    return settings


def sampled_share(patches: int):
    """Attention to a share of so many patches, by a sample."""
    return lambda share: vggt_jax.Sampled(num_keys=round(share * patches), min_tokens=0)


def blocks_of_share(size: str, part: float):
    """Attention to a share of the patches, of which a part is a sample, by blocks of a size."""
    blocks, _, scored = size.partition(":")
    block_q, block_k = map(int, blocks.split("x"))
    return lambda share: vggt_jax.BlockSparse(
        sparse_ratio=1 - share * (1 - part),
        sample_ratio=share * part,
        token_order="hilbert",
        block_q=block_q,
        block_k=block_k,
        score_block_q=int(scored) if scored else None,
        min_tokens=0,
    )


def with_budgets(path: pathlib.Path, share: float, of_share) -> vggt_jax.AttentionPlan:
    """Attention to a share of the patches on average, divided among layers as a plan does it.

    A layer that would see more than all of them is dense, and the others share the rest.
    """
    plan = vggt_jax.AttentionPlan.load(path)
    keys = [getattr(layer, "num_keys", None) for layer in plan.layers]
    most = max((number for number in keys if number is not None), default=1)
    wanted = np.array([2 * most if number is None else number for number in keys], np.float64)
    shares = wanted / wanted.mean() * share
    for _ in range(len(shares)):
        free = shares < 1
        if free.all():
            break
        shares = np.where(free, shares, 1.0)
        rest = share * len(shares) - (~free).sum()
        shares = np.where(free, shares * rest / max(shares[free].sum(), 1e-9), shares)
    layers = (vggt_jax.Dense() if x >= 1 else of_share(x) for x in shares)
    return vggt_jax.AttentionPlan(layers=tuple(layers), min_tokens=0)


def fit_thresholds(args, model, images, sparse) -> dict[float, float]:
    """For each share of dropped blocks, the threshold that drops about as much in these scenes."""
    tokens = encode(model, images, compute_dtype=args.compute_dtype)

    def density(threshold):
        trunk = aggregate(
            model,
            images,
            tokens,
            attention=sparse(cdf_threshold=threshold),
            compute_dtype=args.compute_dtype,
            taps=(),
        )
        by_layer = np.mean(trunk.attention_stats.density, axis=(0, 2))
        return float(np.mean(by_layer[args.layers] if args.layers else by_layer))

    of_ratio = functools.partial(density_of_ratio, args, model, images)
    # A threshold of 0 keeps one block of patches, one of 1 all.
    densities = [of_ratio(1.0), *map(density, _THRESHOLDS), 1.0]
    thresholds = [0.0, *_THRESHOLDS, 1.0]
    return {
        dropped: round(float(np.interp(of_ratio(dropped), densities, thresholds)), 4)
        for dropped in args.dropped
    }


def density_of_ratio(args, model, images, dropped: float) -> float:
    """Which share of the blocks a sparse layer keeps that drops so many of the patches' blocks."""
    layout, num_frames = model.layout(images), images.shape[1]
    special = num_frames * layout.num_special
    patches = num_frames * layout.tokens_per_frame - special
    sinks, blocks = (-(-count // args.block_k) for count in (special, patches))
    return (max(1, int(blocks * (1 - dropped))) + sinks) / (blocks + sinks)


@functools.partial(jax.jit, static_argnames="compute_dtype")
def encode(model, images, *, compute_dtype):
    return model.encode(images, compute_dtype=compute_dtype)


@functools.partial(jax.jit, static_argnames=("attention", "compute_dtype", "taps"))
def aggregate(model, images, tokens, *, attention, compute_dtype, taps=None):
    layout = model.layout(images)
    return model.aggregate(
        tokens, layout, attention=attention, taps=taps, compute_dtype=compute_dtype
    )


@functools.partial(jax.jit, static_argnames=("compute_dtype", "max_points"))
def compare(model, images, trunk, truth, *, compute_dtype, max_points):
    """Metrics by name, one number for each scene; and the cameras."""
    output = model.decode(trunk, model.layout(images), compute_dtype=compute_dtype)
    fields = model.scene_fields(vars(output), images.shape[2:4])
    recon = vggt_jax.Reconstruction(images=images, pixel_centre=model.pixel_centre, **fields)
    points = None
    if model.point_sources:
        points = (
            recon.points_from_depth() if model.point_sources[0] == "depth" else recon.world_points
        )
    predictions = recon.camera_from_world, recon.depth, points
    # One scene after the other: distances between points need the memory.
    metrics = jax.lax.map(
        lambda scene: scene_metrics(*scene[0], scene[1], max_points=max_points),
        (predictions, truth),
    )
    return metrics, recon.camera_from_world


@jax.jit
def drift(camera_from_world, of_dense):
    """The mean angle in degrees, of 30 at most, between the relative poses of two predictions."""
    errors = pair_errors(camera_from_world, of_dense)
    mean = lambda angles: jnp.mean(jnp.minimum(angles, 30.0), axis=-1)
    return {"drift_rotation": mean(errors.rotation), "drift_translation": mean(errors.translation)}


def evaluate(args, model, images, tokens, truth, attention, of_dense=None) -> dict:
    """Metrics [b], statistics of attention [b layers n] and cameras of one setting.

    Args:
        of_dense: cameras by dense attention; None for those of this setting.
    """
    options = {"compute_dtype": args.compute_dtype}
    trunk = aggregate(model, images, tokens, attention=attention, **options)
    stats = trunk.attention_stats
    # Without the statistics the heads are compiled once for all settings.
    trunk = dataclasses.replace(trunk, attention_stats=None)
    metrics, cameras = compare(model, images, trunk, truth, max_points=args.max_points, **options)
    metrics |= drift(cameras, cameras if of_dense is None else of_dense)
    stats = {} if stats is None else vars(stats)
    return {"metrics": metrics, "stats": stats, "cameras": cameras}


def summarise(setting: Setting, batches: list[dict], dense: list[dict]) -> dict:
    """A line of the results: means over scenes, what they gain on dense attention in the same
    scenes, the standard errors of both, means by layer."""
    line = {"rule": setting.rule, "dropped": setting.dropped}
    for name in ("seed", "threshold", "num_keys", "blocks", "budgets", "special"):
        if (value := getattr(setting, name)) is not None:
            line[name] = value
    metrics, errors, differences, failed = {}, {}, {}, 0
    of_all = lambda batches, name: np.concatenate(
        [batch["metrics"][name] for batch in batches]
    ).astype(np.float64)
    for name in batches[0]["metrics"]:
        values = of_all(batches, name)
        differences[name] = mean_and_error(values - of_all(dense, name))
        failed = max(failed, int(np.isinf(values).sum()))
        metrics[name], errors[name] = mean_and_error(values)
    line |= {"metrics": metrics, "standard_errors": errors, "differences": differences}
    line["failed_scenes"] = failed
    for name in batches[0]["stats"]:
        values = np.concatenate([batch["stats"][name] for batch in batches]).astype(np.float64)
        is_measured = ~np.isnan(values)
        line[name] = number(values[is_measured].mean()) if is_measured.any() else None
        line[f"{name}_by_layer"] = [number(x) for x in values.mean((0, 2))]
    return line


def mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
    """The mean, and its standard error where there are two or more; NaN does not count."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None, None
    is_spread = values.size > 1 and np.isfinite(values).all()
    error = number(values.std(ddof=1) / math.sqrt(values.size)) if is_spread else None
    return number(values.mean()), error


def number(x: float) -> float | None:
    """Six digits; None for what JSON has no number for."""
    return float(f"{x:.6g}") if math.isfinite(x) else None


# The report

COLUMNS = {
    "auc_30": "AUC@30", "auc_5": "AUC@5", "auc_3": "AUC@3", "rra_5": "RRA@5", "rta_5": "RTA@5",
    "ate": "ATE",
    "rpe_translation": "RPE t", "rpe_rotation": "RPE r", "abs_rel": "AbsRel", "delta1": "δ<1.25",
    "accuracy": "acc.", "completeness": "comp.", "chamfer": "chamfer", "f_score": "F",
    "normal_consistency": "normals", "drift_translation": "drift",
}  # fmt: skip
COLOURS = {
    "avg": "C0",
    "max": "C1",
    "hilbert": "C2",
    "cdf": "C3",
    "random": "0.5",
    "sample": "C4",
    "blocks": "C5",
    "plan": "C6",
}


def report(out: pathlib.Path):
    """Writes OUT.md and the pictures from OUT.jsonl."""
    path = out.with_suffix(".jsonl")
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        about, lines = lines[0]["run"], lines[1:]
    except (OSError, ValueError, LookupError) as error:
        raise vggt_jax.InputError(
            f"{path}: holds no results ({error}); run without --report-only"
        ) from error
    text = tables(about, lines)
    out.with_suffix(".md").write_text(text)
    print(text)
    plot(about, lines, out.with_suffix(".png"))
    plot_layers(lines, out.with_name(out.name + "_layers.png"))


def tables(about: dict, lines: list[dict]) -> str:
    height, width = about["size"]
    columns = {
        name: title for name, title in COLUMNS.items() if lines[0]["metrics"].get(name) is not None
    }
    text = [
        (
            f"{about['model']}: {about['num_scenes']} scenes ({about['scenes']}) of "
            f"{about['frames']} frames of {width}x{height}, {about['tokens']} tokens; blocks of "
            f"{about['block_q']} queries and {about['block_k']} keys; {about['device']}, "
            f"JAX {about['jax']}."
        ),
        "",
        "| rule | asked to drop | density | covered | saved | entropy | AUC@30 - dense | "
        "AUC@3 - dense | " + " | ".join(columns.values()) + " |",
        "|" + "---|" * (8 + len(columns)),
    ]
    for line in lines:
        rule = line["rule"]
        if "seed" in line:
            rule += f" ({line['seed']})"
        if "threshold" in line:
            rule += f" ({line['threshold']:g})"
        if "num_keys" in line:
            rule += f" ({line['num_keys']})"
        rule += "".join(f" {line[x]}" for x in ("blocks", "budgets", "special") if x in line)
        cells = [rule, "" if rule in ("dense", "everything") else f"{line['dropped']:.0%}"]
        shares = ("density", "covered", "saved", "entropy")
        cells += [cell(line.get(name), ".3f") for name in shares]
        cells += [difference(line, "auc_30"), difference(line, "auc_3")]
        cells += [
            cell(line["metrics"].get(name), ".2f" if name == "rpe_rotation" else ".3f")
            for name in columns
        ]
        text.append("| " + " | ".join(cells) + " |")
    by_layer = [line for line in first_seeds(lines) if "entropy_by_layer" in line]
    for name, title in (("entropy", "Entropy"), ("covered", "Covered"), ("density", "Density")):
        depth = len(by_layer[0][f"{name}_by_layer"])
        text += [
            "",
            f"{title} by layer:",
            "",
            "| rule | asked to drop | " + " | ".join(map(str, range(depth))) + " |",
        ]
        text.append("|" + "---|" * (2 + depth))
        for line in by_layer:
            cells = [line["rule"], f"{line['dropped']:.0%}"]
            cells += [cell(value, ".2f") for value in line[f"{name}_by_layer"]]
            text.append("| " + " | ".join(cells) + " |")
    failed = sum(line["failed_scenes"] > 0 for line in lines)
    if failed:
        text += ["", f"In {failed} settings some scene has a prediction that is not finite."]
    return "\n".join(text) + "\n"


def first_seeds(lines: list[dict]) -> list[dict]:
    """One line for each rule and share."""
    return list({(line["rule"], line["dropped"]): line for line in reversed(lines)}.values())[::-1]


def difference(line: dict, name: str) -> str:
    """What a metric gains on dense attention in the same scenes, with its standard error."""
    mean, error = line.get("differences", {}).get(name, (None, None))
    if line["rule"] == "dense" or mean is None:
        return ""
    return f"{mean:+.3f}" + ("" if error is None else f" ± {error:.3f}")


def cell(value: float | None, digits: str) -> str:
    return "-" if value is None else format(value, digits)


def curve(lines: list[dict], rule: str, value) -> tuple[list, list, list]:
    """Density and mean, lowest and highest value over the seeds of a rule, dense first."""
    points = {0.0: [(1.0, value(lines[0]))]}
    for line in lines:
        if line["rule"] == rule and value(line) is not None:
            points.setdefault(line["dropped"], []).append((line["density"], value(line)))
    groups = sorted(points.values(), key=lambda group: -group[0][0])
    return (
        [np.mean([density for density, _ in group]) for group in groups],
        [np.mean([v for _, v in group]) for group in groups],
        [(min(v for _, v in group), max(v for _, v in group)) for group in groups],
    )


def plot(about: dict, lines: list[dict], path: pathlib.Path):
    """Accuracy against what is kept, a curve for each rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "auc_30": "AUC@30",
        "auc_5": "AUC@5",
        "abs_rel": "AbsRel of depth",
        "chamfer": "chamfer",
    }
    panels = {
        name: title for name, title in panels.items() if lines[0]["metrics"].get(name) is not None
    }
    figure, axes = plt.subplots(
        1,
        len(panels) + 1,
        figsize=(3.2 * (len(panels) + 1), 3.3),
        layout="constrained",
        squeeze=False,
    )
    rules = [rule for rule in COLOURS if any(line["rule"] == rule for line in lines)]
    for axis, (name, title) in zip(axes[0], panels.items(), strict=False):
        for rule in rules:
            density, mean, ends = curve(lines, rule, lambda line, name=name: line["metrics"][name])
            axis.plot(density, mean, "o-", ms=3.5, color=COLOURS[rule], label=rule)
            low, high = zip(*ends, strict=True)
            axis.fill_between(density, low, high, color=COLOURS[rule], alpha=0.2, lw=0)
        axis.axhline(lines[0]["metrics"][name], color="k", lw=0.8, ls=":")
        axis.set_title(title)
    for rule in rules:
        value = lambda line: line.get("covered", 1.0)
        density, mean, _ = curve(lines, rule, value)
        axes[0, -1].plot(density, mean, "o-", ms=3.5, color=COLOURS[rule], label=rule)
    axes[0, -1].set_title("pooled probability covered")
    for axis in axes[0]:
        axis.set_xlabel("share of the blocks kept")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0, 0].legend(frameon=False)
    figure.suptitle(
        f"{about['num_scenes']} scenes of {about['frames']} frames, {about['tokens']} tokens "
        "(dotted: dense)",
        fontsize=10,
    )
    figures.save(figure, path, dpi=130)
    plt.close(figure)


def plot_layers(lines: list[dict], path: pathlib.Path):
    """Entropy with everything kept, and what the rules cover and keep by layer."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = [line["dropped"] for line in lines if line["rule"] in COLOURS]
    chosen = min(shares, key=lambda share: abs(share - 0.75))
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    titles = (
        "entropy, share of the highest",
        f"covered, {chosen:.0%} dropped",
        f"density, {chosen:.0%} dropped",
    )
    for axis, name, title in zip(axes, ("entropy", "covered", "density"), titles, strict=True):
        for line in first_seeds(lines):
            rule = line["rule"]
            is_whole = rule == "everything" and name == "entropy"
            if not is_whole and (rule not in COLOURS or line["dropped"] != chosen):
                continue
            values = [np.nan if x is None else x for x in line[f"{name}_by_layer"]]
            axis.plot(values, "o-", ms=3.5, color=COLOURS.get(rule, "k"), label=rule)
        axis.set(title=title, xlabel="layer", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figures.save(figure, path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
