"""Key rules of common PyTorch modules, from which the tables of whole models are made.

Names are relative; `under` puts a list of rules under a prefix. Layouts, official to ours:
Linear [out, in] to [in, out]; Conv2d [out, in, kh, kw] to [kh, kw, in, out]; ConvTranspose2d
[in, out, kh, kw] to [in, kh, kw, out]; LayerNorm and GroupNorm weight to scale.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vggt_jax.checkpoints.rules import Rule, Shape, Transform, keep

Rules = list[Rule]


def first(x: np.ndarray) -> np.ndarray:
    """Drops a leading axis of size one, the batch axis of official tokens."""
    return x[0]


def linear_kernel(x: np.ndarray) -> np.ndarray:
    """Linear weight [out, in], or 1x1 Conv2d weight [out, in, 1, 1], to [in, out]."""
    return x.reshape(x.shape[:2]).T


def conv_kernel(x: np.ndarray) -> np.ndarray:
    """Conv2d weight [out, in, kh, kw] to [kh, kw, in, out]."""
    return x.transpose(2, 3, 1, 0)


def upsample_kernel(x: np.ndarray) -> np.ndarray:
    """ConvTranspose2d weight [in, out, kh, kw] to [in, kh, kw, out]."""
    return x.transpose(0, 2, 3, 1)


def under(
    official: str,
    native: str,
    rules: Sequence[Rule],
    *,
    layers: int | None = None,
    first: int = 0,
    step: int = 1,
    bfloat16: bool = False,
) -> Rules:
    """Puts rules under a prefix on both sides.

    Args:
        official: prefix of the official keys; holds `{layer}` for the modules of a stack.
        native: prefix of our names.
        rules: rules relative to these prefixes.
        layers: number of modules in the stack.
        first, step: number of the first one in the official checkpoint, and the way to the next.
        bfloat16: whether `dtype="bfloat16"` stores the kernels among them in bfloat16.
    """
    return [
        dataclasses.replace(
            rule,
            official=f"{official}.{rule.official}",
            native=f"{native}.{rule.native}",
            **({} if layers is None else {"layers": layers, "first": first, "step": step}),
            bfloat16=rule.bfloat16 or (bfloat16 and rule.native.endswith("kernel")),
        )
        for rule in rules
    ]


def parameter(
    name: str, shape: Shape, native: str | None = None, transform: Transform = keep
) -> Rules:
    """A bare parameter of this official shape."""
    return [Rule(official=name, shape=shape, native=native or name, transform=transform)]


def norm(name: str, dim: int, native: str | None = None) -> Rules:
    """LayerNorm or GroupNorm over `dim` channels."""
    native = native or name
    return [
        *parameter(f"{name}.weight", (dim,), f"{native}.scale"),
        *parameter(f"{name}.bias", (dim,), f"{native}.bias"),
    ]


def _affine(
    name: str, native: str | None, kernel: Shape, transform: Transform, bias: int | None
) -> Rules:
    native = native or name
    rules = parameter(f"{name}.weight", kernel, f"{native}.kernel", transform)
    if bias is not None:
        rules += parameter(f"{name}.bias", (bias,), f"{native}.bias")
    return rules


def linear(name: str, in_dim: int, out_dim: int, native: str | None = None) -> Rules:
    """Linear with bias."""
    return _affine(name, native, (out_dim, in_dim), linear_kernel, out_dim)


def pointwise(name: str, in_dim: int, out_dim: int, native: str | None = None) -> Rules:
    """1x1 Conv2d with bias, which is a Linear of ours."""
    return _affine(name, native, (out_dim, in_dim, 1, 1), linear_kernel, out_dim)


def conv(
    name: str, in_dim: int, out_dim: int, size: int, native: str | None = None, *, bias: bool = True
) -> Rules:
    """Conv2d with a square kernel."""
    kernel = (out_dim, in_dim, size, size)
    return _affine(name, native, kernel, conv_kernel, out_dim if bias else None)


def upsample(name: str, in_dim: int, out_dim: int, size: int, native: str | None = None) -> Rules:
    """ConvTranspose2d with bias, and a kernel as wide as its stride."""
    return _affine(name, native, (in_dim, out_dim, size, size), upsample_kernel, out_dim)


def mlp(in_dim: int, hidden_dim: int, out_dim: int) -> Rules:
    """Two Linear layers, fc1 and fc2."""
    return [*linear("fc1", in_dim, hidden_dim), *linear("fc2", hidden_dim, out_dim)]


def swiglu(dim: int, hidden_dim: int) -> Rules:
    """Three Linear layers, of which the first two are one parameter."""
    return [*linear("w12", dim, 2 * hidden_dim), *linear("w3", hidden_dim, dim)]


def block(
    dim: int,
    hidden_dim: int,
    *,
    qk_norm_dim: int | None = None,
    layer_scale: bool = True,
    ffn: str = "mlp",
) -> Rules:
    """Transformer block, with q/k norm where its head dimension is given.

    Args:
        hidden_dim: of an MLP.
        ffn: "mlp", or "swiglu" that stands in for an MLP of so many hidden channels.
    """
    if ffn == "mlp":
        perceptron = mlp(dim, hidden_dim, dim)
    else:  # two thirds, rounded up to a multiple of 8 (official file: dinov2/layers/swiglu_ffn.py)
        perceptron = swiglu(dim, -(-(hidden_dim * 2 // 3) // 8) * 8)
    scale = lambda i: parameter(f"ls{i}.gamma", (dim,), f"ls{i}") if layer_scale else []
    return [
        *norm("norm1", dim),
        *linear("attn.qkv", dim, 3 * dim),
        *(norm("attn.q_norm", qk_norm_dim) if qk_norm_dim else []),
        *(norm("attn.k_norm", qk_norm_dim) if qk_norm_dim else []),
        *linear("attn.proj", dim, dim),
        *scale(1),
        *norm("norm2", dim),
        *under("mlp", "mlp", perceptron),
        *scale(2),
    ]


def vision_transformer(
    dim: int,
    hidden_dim: int,
    *,
    depth: int,
    patch_size: int,
    img_size: int,
    num_registers: int | None,
    in_channels: int = 3,
    ffn: str = "mlp",
    has_norm: bool = True,
) -> Rules:
    """DINOv2, with register tokens unless their number is None: the encoder of all models."""
    positions = 1 + (img_size // patch_size) ** 2
    registers = []
    if num_registers is not None:
        registers = parameter("register_tokens", (1, num_registers, dim), transform=first)
    return [
        *parameter("cls_token", (1, 1, dim), transform=first),
        *registers,
        *parameter("pos_embed", (1, positions, dim), transform=first),
        *conv("patch_embed.proj", in_channels, dim, patch_size, "patch_embed"),
        *under("blocks.{layer}", "blocks", block(dim, hidden_dim, ffn=ffn), layers=depth),
        *(norm("norm", dim) if has_norm else []),
    ]


def multihead_attention(name: str, dim: int) -> Rules:
    """torch.nn.MultiheadAttention, whose q, k and v projections are one parameter."""
    return [
        *parameter(
            f"{name}.in_proj_weight", (3 * dim, dim), f"{name}.in_proj.kernel", linear_kernel
        ),
        *parameter(f"{name}.in_proj_bias", (3 * dim,), f"{name}.in_proj.bias"),
        *linear(f"{name}.out_proj", dim, dim),
    ]
