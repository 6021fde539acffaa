"""Every protocol on tiny data sets in the layouts of the published ones, dense and sparse.

    python scripts/evaluate_protocols.py --folder FOLDER --out evaluation_protocols.jsonl

Writes the data sets (`write_dataset.py`) and the results of `vggt-jax evaluate` into the folder,
and a line of JSON for each protocol and attention to the file, as they come; results that are in
the folder are not computed again. Protocols that differ in their names alone are one. Pictures are
squares of the model's own side, so that the sizes of protocols do not count; nor do the
frames of CO3D's. The rest does.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from write_dataset import write

import vggt_jax
from vggt_jax import cli
from vggt_jax.evaluation.protocols import PROTOCOLS, aggregated

NUM_FRAMES = 12
# CO3D's protocols ask for fifty frames.
FRAMES_OF_CO3D = [3, 9, 0, 11, 6, 1, 8, 4, 10, 2]
ATTENTION = {
    "dense": [],
    "sparse ratio 0.5": ["--sparse-ratio", "0.5", "--min-tokens", "0"],
}


def distinct():
    """The protocols that do something else than one before them, by data set and name."""
    found, seen = {}, set()
    for key, protocol in PROTOCOLS.items():
        does = dataclasses.replace(protocol, name="", source="", notes=(), published=())
        if does not in seen:
            seen.add(does)
            found[key] = protocol
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for data sets and results")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--model", help="as vggt-jax takes it; the small model without it")
    parser.add_argument("--side", type=int, help="of the pictures, in pixels; the model's own")
    args = parser.parse_args()
    args.side = args.side or vggt_jax.load_model(args.model).config.img_size
    for dataset in dict.fromkeys(dataset for dataset, _ in PROTOCOLS):
        if not (args.folder / dataset).exists():
            write(dataset, args.folder / dataset, None, NUM_FRAMES, (args.side, args.side))
    frames = args.folder / "co3d_frames.json"
    frames.write_text(json.dumps(dict.fromkeys(("110_1_2", "120_3_4"), FRAMES_OF_CO3D)))
    args.out.write_text("", encoding="utf-8")
    for attention, options in ATTENTION.items():
        for (dataset, name), protocol in distinct().items():
            results = (
                args.folder
                / f"{dataset}-{name}-{attention.replace(' %', '').replace(' ', '-')}.jsonl"
            )
            command = ["evaluate", dataset, str(args.folder / dataset), "--protocol", name]
            command += ["--sequences", "all", "--size", str(args.side), str(args.side)]
            command += ["--pad-frames-to", str(NUM_FRAMES), "--out", str(results), *options]
            command += ["--model", args.model] if args.model else []
            command += ["--frame-list", str(frames)] if dataset == "co3d" else []
            command += ["--num-frames", "12"] if dataset == "tanks" else []
            code = cli.main(command)
            about, *found = map(json.loads, results.read_text().splitlines())
            scored = [line for line in found if "metrics" in line]
            line = {"dataset": dataset, "protocol": name, "attention": attention}
            line["model"] = Path(about["model"]).stem if args.model else about["model"]
            line |= {x: about[x] for x in ("compute_dtype", "vggt_jax", "jax", "device")}
            line["size"] = [args.side, args.side]
            line["sequences"] = len(scored)
            line["frames"] = [len(x["frames"]) for x in scored]
            line["failed"] = {x["sequence"]: x["error"] for x in found if "error" in x}
            line["sparsity"] = sum(x["sparsity"] for x in scored) / max(1, len(scored))
            of = aggregated(protocol, scored)
            line["metrics"] = {key: float(f"{value:.5g}") for key, value in of.items()}
            with args.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{dataset} {name} {attention}: {code}", file=sys.stderr)


if __name__ == "__main__":
    main()
