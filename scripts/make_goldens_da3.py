"""Computes the goldens of the toys of Depth Anything 3 with the official PyTorch code.

    git clone https://github.com/ByteDance-Seed/Depth-Anything-3
    git -C Depth-Anything-3 checkout 2c21ea8
    pip install torch addict omegaconf einops
    python scripts/make_goldens_da3.py --da3 Depth-Anything-3

Weights, images and known cameras are drawn by tests/toys.py, as for `make_goldens.py`. The keys and
shapes of the official modules go into `toy_shapes.json`. With `--noise` nothing is written: the
official code runs in float64, too, and what comes out is the largest difference over the root mean
square of each array.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from make_goldens import Arrays, add_shapes, in_float64, write
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import toys  # noqa: E402

CASES = {
    "da3_toy": ("b2n3_42x56", "n4_28x42"),
    "da3_odd": ("b2n3_42x56_poses", "n3_56x28"),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--da3", type=Path, required=True, help="the official repository")
    parser.add_argument("--out", type=Path, default=toys.GOLDEN, help="folder to write to")
    parser.add_argument("--noise", action="store_true", help="compare with float64, write nothing")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(args.da3 / "src"))
    torch.set_grad_enabled(False)
    for toy, cases in CASES.items():
        model = nn.ModuleDict({"model": build(toy)})
        if not args.noise:
            add_shapes(toy, model, args.out / "toy_shapes.json")
        missing, unexpected = safetensors.torch.load_model(
            model, toys.write_checkpoint(toy, Path("/tmp")), strict=False
        )
        assert not missing and not unexpected, (missing, unexpected)
        for case in cases:
            arrays = run(toy, case, model.eval())
            if not args.noise:
                write(args.out / f"{toy}.{case}.npz", arrays)
                continue
            with in_float64(model):
                exact = run(toy, case, model)
            for name, x in arrays.items():
                error = np.abs(x - exact[name]).max() / np.sqrt(np.mean(exact[name] ** 2))
                print(f"{toy} {case} {name} {error:.0e}")
    return 0


def build(toy: str) -> nn.Module:
    """The official model with the sizes of a toy."""
    from depth_anything_3.model.cam_dec import CameraDec
    from depth_anything_3.model.cam_enc import CameraEnc
    from depth_anything_3.model.da3 import DepthAnything3Net
    from depth_anything_3.model.dinov2.dinov2 import DinoV2
    from depth_anything_3.model.dinov2.vision_transformer import DinoVisionTransformer
    from depth_anything_3.model.dualdpt import DualDPT

    c = toys.config(toy)
    starts = {name: c[name] for name in ("alt_start", "qknorm_start", "rope_start")}
    with torch.random.fork_rng():
        backbone = DinoV2("vits", c["out_layers"], **starts)
        backbone.pretrained = DinoVisionTransformer(
            img_size=c["img_size"],
            patch_size=c["patch_size"],
            embed_dim=c["dim"],
            depth=c["depth"],
            num_heads=c["num_heads"],
            mlp_ratio=c["mlp_ratio"],
            ffn_layer=c["ffn"],
            **starts,
        )
        head = DualDPT(
            dim_in=2 * c["dim"],
            output_dim=2,
            features=c["head_features"],
            out_channels=c["head_out_channels"],
        )
        encoder = CameraEnc(
            dim_out=c["dim"], trunk_depth=c["cam_enc_depth"], num_heads=c["cam_enc_num_heads"]
        )
        return DepthAnything3Net(backbone, head, CameraDec(dim_in=2 * c["dim"]), encoder)


def run(toy: str, case: str, model: Any) -> Arrays:
    """Outputs with intermediate results, by name, channels last."""
    net = model["model"]
    kept: dict[str, Any] = {}

    def keep(name: str, copy: Any):
        return lambda module, inputs, output: kept.update({name: copy(output)})

    hooks = [
        net.backbone.register_forward_hook(keep("features", lambda output: output[0])),
        net.head.register_forward_hook(keep("maps", dict)),
        net.cam_dec.register_forward_hook(keep("pose_enc", lambda output: output)),
    ]
    dtype = next(net.parameters()).dtype
    mean, std = (
        torch.tensor(x, dtype=dtype) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    images = (torch.from_numpy(toys.images(toy, case)).to(dtype) - mean) / std
    cameras: tuple[Any, ...] = (None, None)
    if case.endswith("_poses"):
        known = toys.known(toy, case)
        poses = np.linalg.inv(known["camera_poses"].astype(np.float64))
        cameras = tuple(torch.from_numpy(x).to(dtype) for x in (poses, known["intrinsics"]))
        cameras = (normalised(cameras[0]), cameras[1])
    output = net(images.movedim(-1, 2).contiguous(), *cameras)
    for hook in hooks:
        hook.remove()
    arrays = {f"tap_{i}": feature[0] for i, feature in enumerate(kept["features"]) if i in (0, 3)}
    arrays |= {"camera_feature": kept["features"][-1][1], "pose_enc": kept["pose_enc"]}
    arrays |= {name: output[name] for name in ("depth", "depth_conf", "extrinsics", "intrinsics")}
    arrays |= {name: kept["maps"][name] for name in ("ray", "ray_conf")}
    return {name: toys.kept(name, x.numpy()) for name, x in arrays.items()}


def normalised(extrinsics: torch.Tensor) -> torch.Tensor:
    """What the official API does with known poses before the network, scene by scene."""
    from depth_anything_3.utils.geometry import affine_inverse

    scenes = []
    for scene in extrinsics:
        relative = scene @ affine_inverse(scene[:1])
        distances = affine_inverse(relative)[:, :3, 3].norm(dim=-1)
        relative[:, :3, 3] /= torch.clamp(torch.median(distances), min=0.1)
        scenes.append(relative)
    return torch.stack(scenes)


if __name__ == "__main__":
    sys.exit(main())
