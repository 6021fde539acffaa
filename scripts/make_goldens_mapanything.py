"""Computes the goldens of the toys of MapAnything with the official PyTorch code.

    git clone https://github.com/facebookresearch/map-anything
    git -C map-anything checkout f7ebafb
    git clone https://github.com/facebookresearch/dinov2 && git -C dinov2 checkout b8931f7
    pip install torch torchvision timm opencv-python-headless matplotlib
    pip install einops hydra-core scipy huggingface_hub jaxtyping uniception==0.1.7
    python scripts/make_goldens_mapanything.py --mapanything map-anything --dinov2 dinov2

Weights, images and what is known of them are drawn by tests/toys.py, as for `make_goldens.py`. The
keys and shapes of the official modules go into `toy_shapes.json`, under the names that
`save_pretrained` writes. With `--noise` nothing is written: the official code runs in float64, too,
and what comes out is the largest difference over the largest value of each array.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import numpy as np
import safetensors.torch
import torch
from make_goldens import Arrays, Config, add_shapes, in_float64, keep_output, write
from omegaconf import OmegaConf
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import toys  # noqa: E402

CASES = {
    "mapanything_toy": ("b2n5_42x56_known",),
    "mapanything_odd": ("n2_70x42", "b2n5_42x56_known"),
}
RELEASED = {"mapanything_toy": "mapanything", "mapanything_odd": "mapanything_v1"}
DEFAULTS = {
    "patch_size": 14, "encoder_ffn": "swiglu", "encoder_norm": False, "info_sharing_ffn": "swiglu",
    "info_sharing_layer_scale": True, "mlp_ratio": 4.0, "use_encoder_cls_token": True,
    "pose_num_blocks": 2, "scale_num_layers": 2,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mapanything", type=Path, required=True, help="the official repository")
    parser.add_argument("--dinov2", type=Path, required=True, help="facebookresearch/dinov2")
    parser.add_argument("--out", type=Path, default=toys.GOLDEN, help="folder to write to")
    parser.add_argument("--noise", action="store_true", help="compare with float64, write nothing")
    args = parser.parse_args(argv)
    sys.path[:0] = [str(args.mapanything), str(args.dinov2)]
    torch.set_grad_enabled(False)
    for toy, cases in CASES.items():
        model = build(toy, args.mapanything / "configs")
        if not args.noise:
            add_shapes(toy, model, args.out / "toy_shapes.json")
        missing, unexpected = safetensors.torch.load_model(
            model, toys.write_checkpoint(toy, Path("/tmp")), strict=False
        )
        assert not missing and not unexpected, (missing, unexpected)
        for case in cases:
            arrays = run(toy, case, model)
            if not args.noise:
                write(args.out / f"{toy}.{case}.npz", arrays)
                continue
            with in_float64(model):
                exact = run(toy, case, model)
            for name, x in arrays.items():
                error = np.abs(x - exact[name]).max() / np.abs(exact[name]).max()
                print(f"{toy} {case} {name} {error:.0e}")
    return 0


def build(toy: str, configs: Path) -> nn.Module:
    """The official model of a released configuration, with the sizes of a toy."""
    from mapanything.models.mapanything import model as official

    c = DEFAULTS | toys.config(toy)
    OmegaConf.register_new_resolver("special_float", float, replace=True)
    with hydra.initialize_config_dir(str(configs.resolve()), version_base=None):
        released = hydra.compose("train", overrides=[f"model={RELEASED[toy]}", "machine=default"])
    config: Any = OmegaConf.to_container(released.model.model_config, resolve=True)
    config["info_sharing_config"]["module_args"] |= {
        "depth": c["info_sharing_depth"],
        "dim": c["info_sharing_dim"],
        "num_heads": c["info_sharing_num_heads"],
        "mlp_ratio": c["mlp_ratio"],
        "indices": c["info_sharing_indices"],
    }
    heads = config["pred_head_config"]
    heads["feature_head"] |= {"feature_dim": c["dpt_features"], "layer_dims": c["dpt_layer_dims"]}
    heads["pose_head"] |= {"num_resconv_block": c["pose_num_blocks"]}
    sizes = {"hidden_dim": c["scale_hidden_dim"], "num_mlp_layers": c["scale_num_layers"]}
    heads["scale_head"] |= sizes
    known = config["geometric_input_config"]
    for name in ("ray_dirs", "depth"):
        known[f"{name}_encoder_config"]["intermediate_dims"] = c["dense_input_dims"]
    for name in ("cam_rot", "cam_trans", "scale"):
        known[f"{name}_encoder_config"]["intermediate_dims"] = c["global_input_dims"]

    def encoder_factory(encoder_str: str, **options):
        encoder = official_factory(encoder_str, **options)
        if encoder_str == "dinov2":
            encoder.enc_embed_dim = c["encoder_dim"]
        return encoder

    def pose_head(*, patch_size, **options):
        side = round((c["pose_hidden_dim"] / 4) ** 0.5)  # its width is four times the square
        return official_pose_head(patch_size=side, **options)

    official_factory, official_pose_head = official.encoder_factory, official.PoseHead
    with (
        torch.random.fork_rng(),
        mock.patch.object(torch.hub, "load", functools.partial(build_encoder, c)),
        mock.patch.multiple(official, encoder_factory=encoder_factory, PoseHead=pose_head),
    ):
        return official.MapAnything(**config).eval()


def build_encoder(c: Config, *args: Any, **options: Any) -> nn.Module:
    """DINOv2 with the settings of the models without registers (dinov2/hub/backbones.py)."""
    from dinov2.layers import MemEffAttention
    from dinov2.layers import NestedTensorBlock as Block
    from dinov2.models.vision_transformer import DinoVisionTransformer

    return DinoVisionTransformer(
        img_size=c["img_size"],
        patch_size=c["patch_size"],
        embed_dim=c["encoder_dim"],
        depth=c["encoder_depth"],
        num_heads=c["encoder_num_heads"],
        mlp_ratio=c["mlp_ratio"],
        ffn_layer="swiglufused" if c["encoder_ffn"] == "swiglu" else "mlp",
        init_values=1.0,
        block_chunks=0,
        block_fn=functools.partial(Block, attn_class=MemEffAttention),
        interpolate_antialias=False,
        interpolate_offset=0.1,
    )


def views_of(toy: str, case: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A case as the official `infer` takes it: a dictionary a frame."""
    mean, std = (
        torch.tensor(x, dtype=dtype) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    images = (torch.from_numpy(toys.images(toy, case)).to(dtype) - mean) / std
    views: list[dict[str, Any]] = [
        {"img": image.movedim(-1, 1).contiguous(), "data_norm_type": ["dinov2"]}
        for image in images.unbind(1)
    ]
    if not case.endswith("_known"):
        return views
    known = {name: torch.from_numpy(x) for name, x in toys.known(toy, case).items()}
    official = {
        "intrinsics": "intrinsics",
        "rays": "ray_directions",
        "depth": "depth_z",
        "camera_poses": "camera_poses",
    }
    for i, view in enumerate(views):
        for name, official_name in official.items():
            if known[f"{name}_known"][i]:
                view[official_name] = known[name][:, i].to(dtype)
        view["is_metric_scale"] = known["metric"]
    return views


def run(toy: str, case: str, model: nn.Module) -> Arrays:
    """Outputs of MapAnything with its intermediate results, by name, channels last."""
    kept: dict[str, Any] = {}
    hooks = [
        keep_output(module, name, kept)
        for name, module in (
            ("encoder", model.encoder),
            ("fused", model.fusion_norm_layer),
            ("shared", model.info_sharing),
            ("dense", model.dense_head),
            ("pose", model.pose_head),
        )
    ]
    b, s, _height, _width = toys.sizes(case)
    dtype = next(model.parameters()).dtype
    views = model.infer(
        views_of(toy, case, dtype),
        use_amp=False,
        memory_efficient_inference=False,
        apply_mask=False,
    )
    masked = model.infer(
        views_of(toy, case, dtype), use_amp=False, memory_efficient_inference=False
    )
    for hook in hooks:
        hook.remove()
    by_scene = lambda x: x.unflatten(0, (s, b)).transpose(0, 1)
    tokens = lambda x: x.flatten(2).transpose(1, 2)  # of [n c rows columns]
    last = kept["shared"][0]
    arrays = {
        "patch_tokens": by_scene(tokens(kept["encoder"].features)),
        "fused_tokens": by_scene(kept["fused"].reshape(s * b, -1, kept["fused"].shape[-1])),
        "tokens_final": torch.stack([tokens(x) for x in last.features], 1),
        "dense_raw": by_scene(kept["dense"].decoded_channels.movedim(1, -1)),
        "pose_raw": by_scene(kept["pose"].decoded_channels),
    }
    for name in (
        "ray_directions", "depth_along_ray", "pts3d", "pts3d_cam", "conf",
        "non_ambiguous_mask_logits", "cam_trans", "cam_quats", "intrinsics", "camera_poses",
    ):  # fmt: skip
        arrays[name] = torch.stack([view[name] for view in views], 1)
    arrays["metric_scaling_factor"] = views[0]["metric_scaling_factor"]
    arrays["mask"] = torch.stack([view["mask"][..., 0] for view in masked], 1).to(dtype)
    return {name: toys.kept(name, x.numpy()) for name, x in arrays.items()}


if __name__ == "__main__":
    sys.exit(main())
