"""Computes the goldens of the toy models with the official PyTorch code: arrays in tests/golden.

    git clone https://github.com/facebookresearch/vggt && git -C vggt checkout 44b3afb
    git clone https://github.com/yyfz/Pi3 && git -C Pi3 checkout 9fa3ddb
    pip install torch einops huggingface_hub numpy
    python scripts/make_goldens.py --vggt vggt --pi3 Pi3

The official code takes the sizes of the toys, and weights and images that tests/toys.py draws. The
keys and shapes of its modules become `toy_shapes.json`, and each case of a toy a file of its own.
With `--noise` nothing is written: the official code runs in float64, too, and what comes out is the
table of tests/golden/README.md.

Without a GPU it takes a minute. The last bits of the arrays depend on the version of PyTorch, the
processor and the number of threads; the tests must allow for that anyway.
"""

import argparse
import contextlib
import functools
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import safetensors.torch
import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import toys  # noqa: E402

Config = dict[str, Any]
Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]

# Cases of each toy, with the query points of a scene: how many, or [m 2] in pixels. 70 pixels and
# fewer are too small for the correlation levels of vggt_toy.
CASES: dict[str, dict[str, int | list]] = {
    "vggt_toy": {"n1_56x84": 0, "b2n2_70x70": 0, "n2_140x182": 7},
    "vggt_odd": {"n5_84x112": 5, "b2n3_112x70": 3},
    # Near and on the border, and outside.
    "vggt_late": {"n3_70x98": [[96.0, 21.7], [0.0, 0.0], [-1.5, 3.2], [33.3, 69.0]]},
    "pi3_toy": {"n1_56x84": 0, "b2n2_70x70": 0},
    "pi3_odd": {"n5_84x42": 0, "b2n3_42x70": 0},
    "pi3x_odd": {
        "n2_56x84": 0,
        "b2n3_42x70_all": 0,
        "b2n3_42x70_poses": 0,
        "b2n3_42x70_some": 0,
    },
}
# These are large: of the trunk they hold the first and the last layer. What is wrong between shows
# in the last, and in smaller cases.
OUTER_LAYERS_ONLY = {"vggt_toy.n2_140x182", "vggt_odd.n5_84x112", "vggt_odd.b2n3_112x70"}
OUTER_LAYERS_ONLY |= {"vggt_late.n3_70x98"}
# Columns of the table of noise: names of arrays.
NOISE = {
    "tokens": "patch_tokens|aggregated_.*|decoded",
    "poses": "pose_enc_.*|camera_poses",
    "cameras": "extrinsic|intrinsics?",
    "depth": "depth|depth_conf",
    "points": "(world_|local_)?points|world_points_conf",
    "track": "track",
    "vis": "vis",
    "conf": "conf",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vggt", type=Path, required=True, help="facebookresearch/vggt")
    parser.add_argument("--pi3", type=Path, required=True, help="yyfz/Pi3")
    parser.add_argument("--out", type=Path, default=toys.GOLDEN, help="folder to write to")
    parser.add_argument("--noise", action="store_true", help="compare with float64, write nothing")
    args = parser.parse_args(argv)
    sys.path[:0] = [str(args.vggt), str(args.pi3)]
    torch.set_grad_enabled(False)

    models = {toy: build(toy) for toy in CASES}
    if args.noise:
        print_row("", list(NOISE))
        print_row("---", ["---"] * len(NOISE))
    else:
        write_shapes(models, args.out / "toy_shapes.json")
    for toy, model in models.items():
        load(model, toys.weights(toy))
        noise: dict[str, float] = {}
        for case, points in CASES[toy].items():
            arrays = compute(toy, case, model, points)
            if args.noise:
                with in_float64(model):
                    exact = compute(toy, case, model, points)
                for name, value in measure_noise(arrays, exact).items():
                    noise[name] = max(noise.get(name, 0.0), value)
            else:
                write(args.out / f"{toy}.{case}.npz", arrays)
        if args.noise:
            print_row(f"`{toy}`", [f"{noise[x]:.0e}" if x in noise else "-" for x in NOISE])
    return 0


def build(toy: str) -> nn.Module:
    """The official module with the sizes of a toy."""
    with torch.random.fork_rng():
        make = {"vggt": build_vggt, "pi3": build_pi3, "pi3x": build_pi3x}[toy.partition("_")[0]]
        model = make(toys.config(toy))
    return model.eval()


def build_vggt(config: Config) -> nn.Module:
    """VGGT, whose constructor hands on few sizes: the classes that it builds get the others."""
    from vggt.heads import track_head
    from vggt.layers import vision_transformer
    from vggt.models import aggregator, vggt

    c, part = config, functools.partial
    encoder = part(
        vision_transformer.DinoVisionTransformer,
        patch_size=c["patch_size"],
        embed_dim=c["embed_dim"],
        depth=c["vit_depth"],
        num_heads=c["vit_num_heads"],
        mlp_ratio=c["mlp_ratio"],
        block_fn=part(vision_transformer.Block, attn_class=vision_transformer.MemEffAttention),
    )
    trunk = part(
        aggregator.Aggregator,
        depth=c["depth"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        num_register_tokens=c["num_register_tokens"],
    )
    camera_head = part(
        vggt.CameraHead,
        trunk_depth=c["camera_trunk_depth"],
        num_heads=c["camera_num_heads"],
        mlp_ratio=c["mlp_ratio"],
    )
    dpt = part(
        vggt.DPTHead, out_channels=c["dpt_out_channels"], intermediate_layer_idx=c["dpt_layers"]
    )
    tracking = part(
        vggt.TrackHead,
        features=c["track_features"],
        iters=c["track_iters"],
        corr_levels=c["track_corr_levels"],
        corr_radius=c["track_corr_radius"],
        hidden_size=c["track_hidden_size"],
    )
    tracker = part(track_head.BaseTrackerPredictor, depth=c["track_depth"])
    # What the official code leaves no choice of.
    assert c.get("camera_iters", 4) == 4
    assert c.get("track_num_heads", 8) == 8 and c.get("track_num_virtual_tracks", 64) == 64
    with (
        mock.patch.multiple(aggregator, vit_large=encoder),
        mock.patch.multiple(track_head, DPTHead=dpt, BaseTrackerPredictor=tracker),
        mock.patch.multiple(
            vggt,
            Aggregator=trunk,
            CameraHead=camera_head,
            DPTHead=part(dpt, features=c["dpt_features"]),
            TrackHead=tracking,
        ),
    ):
        return vggt.VGGT(
            img_size=c["img_size"],
            patch_size=c["patch_size"],
            embed_dim=c["embed_dim"],
            **{name: c.get(name, True) for name in c if name.startswith("enable_")},
        )


def build_pi3(config: Config) -> nn.Module:
    """π³, whose constructor hands on no sizes: the classes that it builds get others."""
    from pi3.models import pi3

    c, dim = config, config["decoder_dim"]
    pi3_points = pi3.LinearPts3d

    def points(*, dec_embed_dim, **options):
        return pi3_points(dec_embed_dim=c["head_dim"], **options)

    with pi3_sizes(pi3, c), mock.patch.multiple(pi3, LinearPts3d=points):
        model = pi3.Pi3()
    # What stands there as numbers: 36 blocks, and five tokens of width 1024.
    model.decoder = model.decoder[: c["decoder_depth"]]
    model.patch_start_idx = c["num_register_tokens"]
    model.register_token = nn.Parameter(torch.zeros(1, 1, c["num_register_tokens"], dim))
    return model


def build_pi3x(config: Config) -> nn.Module:
    """Pi3X, like π³; its widths stand in the code of a method, too."""
    from pi3.models import pi3x

    c, dim, layers = config, config["decoder_dim"], config["pose_inject_layers"]
    sizes = {"num_heads": c["decoder_num_heads"], "mlp_ratio": c["mlp_ratio"]}
    context, inject, conv_head = (
        pi3x.ContextOnlyTransformerDecoder,
        pi3x.PoseInjectBlock,
        pi3x.ConvHead,
    )
    patches = pi3x.PatchEmbed

    def metric_decoder(**options):
        own = {
            "in_dim": 2 * dim,
            "dec_embed_dim": c["metric_dim"],
            "out_dim": c["metric_dim"],
            "depth": c["metric_depth"],
            "dec_num_heads": c["metric_num_heads"],
            "mlp_ratio": c["mlp_ratio"],
        }
        return context(**options | own)

    def head(**options):
        own = {
            "dim_proj": c["head_dim"],
            "dim_upsample": c["conv_upsample_dims"],
            "dim_times_res_block_hidden": c["conv_hidden_ratio"],
            "num_res_blocks": c["conv_res_blocks"],
            "last_conv_channels": c["conv_last_channels"],
        }
        return conv_head(**options | own)

    with (
        pi3_sizes(pi3x, c),
        mock.patch.multiple(
            pi3x,
            ContextOnlyTransformerDecoder=metric_decoder,
            ConvHead=head,
            PoseInjectBlock=lambda **options: inject(**options | {"dim": dim} | sizes),
            PatchEmbed=lambda **options: patches(**options | {"embed_dim": dim}),
        ),
    ):
        model = pi3x.Pi3X()
    # What stands there as numbers.
    model.decoder = model.decoder[: c["decoder_depth"]]
    model.pose_inject_blk = model.pose_inject_blk[: len(layers)]
    model.dec_embed_dim, model.patch_start_idx = dim, c["num_register_tokens"]
    model.register_token = nn.Parameter(torch.zeros(1, 1, c["num_register_tokens"], dim))
    model.depth_emb = nn.Parameter(torch.zeros(1, 1, dim))
    model.metric_token = nn.Parameter(torch.zeros(1, 1, 2 * dim))
    model.metric_head = nn.Linear(c["metric_dim"], 1)
    code = textwrap.dedent(inspect.getsource(pi3x.Pi3X.decode))
    for released, toy in (("[1, 9, 17, 25, 33]", str(layers)), ("1024", str(dim))):
        assert released in code
        code = code.replace(released, toy)
    names = dict(vars(pi3x))
    exec(code, names)
    model.decode = functools.partial(names["decode"], model)
    return model


@contextlib.contextmanager
def pi3_sizes(module: Any, config: Config) -> Iterator[None]:
    """Gives the classes that π³ and Pi3X build the sizes of a toy."""
    from pi3.models.dinov2.models import vision_transformer

    c, part = config, functools.partial
    dim, head_dim, mlp_ratio = c["decoder_dim"], c["head_dim"], c.get("mlp_ratio", 4.0)

    def encoder(*, num_register_tokens, img_size, **options):
        return vision_transformer.DinoVisionTransformer(
            embed_dim=c["encoder_dim"],
            depth=c["encoder_depth"],
            num_heads=c["encoder_num_heads"],
            mlp_ratio=mlp_ratio,
            num_register_tokens=c.get("encoder_num_register_tokens", num_register_tokens),
            img_size=c["img_size"],
            block_fn=part(vision_transformer.Block, attn_class=vision_transformer.MemEffAttention),
            **options,
        )

    def block(**options):
        sizes = {"dim": dim, "num_heads": c["decoder_num_heads"], "mlp_ratio": mlp_ratio}
        return official_block(**options | sizes)

    def decoder(*, out_dim, **options):
        sizes = {
            "in_dim": 2 * dim,
            "dec_embed_dim": head_dim,
            "dec_num_heads": c["head_num_heads"],
            "depth": c["head_depth"],
            "mlp_ratio": mlp_ratio,
            "out_dim": c["camera_dim"] if out_dim == released_camera_dim else head_dim,
        }
        return official_decoder(**options | sizes)

    official_block, official_decoder = module.BlockRope, module.TransformerDecoder
    camera_head, released_camera_dim = module.CameraHead, 512
    with (
        mock.patch.multiple(vision_transformer, vit_large=encoder),
        mock.patch.multiple(
            module,
            BlockRope=block,
            TransformerDecoder=decoder,
            CameraHead=lambda dim: camera_head(dim=c["camera_dim"]),
        ),
    ):
        yield


def write_shapes(models: dict[str, nn.Module], path: Path):
    """Writes the shape of every key of the official modules, a key a line."""
    toys_text = []
    for toy, model in models.items():
        shapes = {key: list(x.shape) for key, x in sorted(model.state_dict().items())}
        lines = [f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in shapes.items()]
        toys_text.append(f" {json.dumps(toy)}: {{\n" + ",\n".join(lines) + "\n }")
    path.write_text("{\n" + ",\n".join(toys_text) + "\n}\n")


def add_shapes(toy: str, model: nn.Module, path: Path):
    """Writes the shape of every parameter under its first name, a key a line."""
    tensors = model.state_dict()
    aliases = safetensors.torch._remove_duplicate_names(tensors)
    repeated = {name for names in aliases.values() for name in names}
    shapes = json.loads(path.read_text())
    shapes[toy] = {key: list(x.shape) for key, x in sorted(tensors.items()) if key not in repeated}
    lines = lambda of_toy: ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(shape)}" for key, shape in of_toy.items()
    )
    text = ",\n".join(
        f" {json.dumps(name)}: {{\n{lines(of_toy)}\n }}" for name, of_toy in shapes.items()
    )
    path.write_text(f"{{\n{text}\n}}\n")


def load(model: nn.Module, weights: Arrays):
    model.load_state_dict({key: torch.from_numpy(x) for key, x in weights.items()}, strict=True)


@contextlib.contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Lets the official code compute in float64, also where it asks for float32 by name."""
    model.double()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
            mock.patch.multiple(torch, float32=torch.float64, float=torch.float64),
        ):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        model.float()


def compute(toy: str, case: str, model: nn.Module, points: int | list) -> Arrays:
    """All arrays of a case, with the query points that it took."""
    dtype = next(model.parameters()).dtype
    images = torch.from_numpy(toys.images(toy, case)).to(dtype).movedim(-1, 2).contiguous()
    if toy.startswith("pi3x"):
        given = {name: torch.from_numpy(x) for name, x in toys.priors(toy, case).items()}
        given = {name: x if x.dtype == torch.bool else x.to(dtype) for name, x in given.items()}
        return to_numpy(run_pi3x(model, images, given))
    if toy.startswith("pi3"):
        return to_numpy(run_pi3(model, images))
    query_points = None
    if points:
        query_points = torch.from_numpy(place_points(toy, case, points)).to(dtype)
    arrays = to_numpy(run_vggt(model, images, query_points))
    if f"{toy}.{case}" in OUTER_LAYERS_ONLY:
        for layer in range(1, len(model.aggregator.global_blocks) - 1):
            del arrays[f"aggregated_{layer}"]
    return arrays


def place_points(toy: str, case: str, points: int | list) -> np.ndarray:
    """Query points [b m 2] in pixels, float32: those given, or random ones within the images."""
    b, _, height, width, _ = toys.images(toy, case).shape
    if isinstance(points, list):
        return np.asarray([points] * b, np.float32)
    stream = np.random.RandomState(points)
    return (stream.random_sample((b, points, 2)) * [width - 1, height - 1]).astype(np.float32)


def to_numpy(arrays: Tensors) -> Arrays:
    return {name: toys.kept(name, x.numpy()) for name, x in arrays.items()}


def run_vggt(model: nn.Module, images: torch.Tensor, query_points: torch.Tensor | None) -> Tensors:
    """Outputs of VGGT with its intermediate results, and the query points, by name."""
    from vggt.utils.pose_enc import pose_encoding_to_extri_intri

    kept = {}
    hooks = [
        keep_output(model.aggregator, "trunk", kept),
        keep_output(model.aggregator.patch_embed, "encoder", kept),
    ]
    output = model(images, query_points=query_points)
    for hook in hooks:
        hook.remove()
    tokens = kept["encoder"]["x_norm_patchtokens"]
    arrays = {} if query_points is None else {"query_points": query_points}
    arrays["patch_tokens"] = tokens.unflatten(0, images.shape[:2])
    arrays |= {f"aggregated_{i}": x for i, x in enumerate(kept["trunk"][0])}
    arrays |= {f"pose_enc_{i}": x for i, x in enumerate(output["pose_enc_list"])}
    names = "depth depth_conf world_points world_points_conf track vis conf".split()
    arrays |= {name: output[name] for name in names if name in output}
    extrinsic, intrinsic = pose_encoding_to_extri_intri(output["pose_enc"], images.shape[-2:])
    return arrays | {"extrinsic": extrinsic, "intrinsic": intrinsic}


def run_pi3(model: nn.Module, images: torch.Tensor) -> Tensors:
    """Outputs of π³ with its intermediate results, by name."""
    from pi3.utils.geometry import recover_intrinsic_from_rays_d

    kept = {}
    hooks = [
        keep_output(model.encoder, "encoder", kept),
        model.point_decoder.register_forward_pre_hook(
            lambda module, inputs: kept.update(decoded=inputs[0])
        ),
    ]
    output = model(images)
    for hook in hooks:
        hook.remove()
    frames = images.shape[:2]
    # As the official examples call it.
    intrinsics = recover_intrinsic_from_rays_d(
        output["local_points"], force_center_principal_point=True
    )
    return {
        "patch_tokens": kept["encoder"]["x_norm_patchtokens"].unflatten(0, frames),
        "decoded": kept["decoded"].unflatten(0, frames),
        **output,
        "intrinsics": intrinsics,
    }


def run_pi3x(model: nn.Module, images: torch.Tensor, known: Tensors) -> Tensors:
    """Outputs of Pi3X with its intermediate results, by name."""
    kept = {}
    encode = model.encode

    def keep_tokens(*args, **options):
        found = encode(*args, **options)
        kept["prompted_tokens"], kept["normalized_poses"] = found[0].clone(), found[1].clone()
        return found

    hook = model.point_decoder.register_forward_pre_hook(
        lambda module, inputs: kept.update(decoded=inputs[0])
    )
    with mock.patch.object(model, "encode", keep_tokens):
        output = model(images, **{name: x.clone() for name, x in known.items()})
    hook.remove()
    frames = images.shape[:2]
    tokens = {name: kept[name].unflatten(0, frames) for name in ("prompted_tokens", "decoded")}
    poses = {"normalized_poses": kept["normalized_poses"]} if known else {}
    return tokens | poses | output


def keep_output(module: nn.Module, name: str, kept: dict) -> torch.utils.hooks.RemovableHandle:
    return module.register_forward_hook(lambda module, inputs, output: kept.update({name: output}))


def write(path: Path, arrays: Arrays):
    for name, x in arrays.items():
        if x.dtype != np.float32 or not np.isfinite(x).all():
            raise ValueError(f"{path.name}: {name} is {x.dtype} or not finite")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB, {len(arrays)} arrays")


def measure_noise(arrays: Arrays, exact: Arrays) -> dict[str, float]:
    """The largest difference from float64 over the largest value, of each column of the table."""
    noise: dict[str, float] = {}
    for column, pattern in NOISE.items():
        for name in filter(re.compile(pattern).fullmatch, arrays):
            assert arrays[name].dtype == np.float32 and exact[name].dtype == np.float64, name
            difference = np.abs(arrays[name] - exact[name]).max()
            noise[column] = max(noise.get(column, 0.0), difference / np.abs(exact[name]).max())
    return noise


def print_row(first: str, cells: list[str]):
    print("|", " | ".join([first, *cells]), "|")


if __name__ == "__main__":
    sys.exit(main())
