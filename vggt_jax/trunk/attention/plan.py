"""Attention that differs by layer, as a file, and the values that have a name."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from pallas_kernels import tuned
from vggt_jax.errors import InputError
from vggt_jax.files import replacing
from vggt_jax.layers.attention import Dense
from vggt_jax.layers.scene_attention import SceneAttention
from vggt_jax.layers.token_order import TokenOrder
from vggt_jax.trunk.attention.block_sparse import BlockSparse
from vggt_jax.trunk.attention.sampled import MOST_KEYS, Sampled

_KINDS: dict[str, type[SceneAttention]] = {
    "dense": Dense,
    "sampled": Sampled,
    "block_sparse": BlockSparse,
}
FORMAT = "vggt-jax attention plan"
_VERSION = 1
# Bytes of a file, and layers in it, beyond which it is no plan.
_MOST_BYTES = 2**20
_MOST_LAYERS = 1000


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionPlan(SceneAttention):
    """For each layer of the trunk how it attends over all frames.

    `vggt-jax calibrate` makes one for a model from photographs. Layers whose `Sampled` value has no
    fewer keys than a scene has patches are dense in that scene.

    Attributes:
        layers: `Dense`, `Sampled` or `BlockSparse` of each layer, whose own `min_tokens` do not
            matter. Block-sparse ones must agree on the order of tokens.
        min_tokens: scenes of fewer tokens run dense.

    Raises:
        ValueError: values that do not fit together.
    """

    layers: tuple[SceneAttention, ...]
    min_tokens: int = 4096

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(layer.decided() for layer in self.layers))
        if not self.layers:
            raise ValueError("a plan needs a value for each layer of the trunk")
        if unknown := [x for x in self.layers if not isinstance(x, tuple(_KINDS.values()))]:
            raise ValueError(f"{unknown[0]} is no attention of a single layer")
        if len(orders := self._token_orders) > 1:
            raise ValueError(f"layers differ in their token_order: {', '.join(sorted(orders))}")
        for layer in self.layers:
            layer.of_layers(1)
        if self.min_tokens < 0:
            raise ValueError(f"min_tokens={self.min_tokens} must be at least 0")

    def __str__(self) -> str:
        """The attention of each layer: how many keys it samples, or its kind."""
        of_layer = lambda x: f"{x.num_keys}" if isinstance(x, Sampled) else _kind(x)
        return f"AttentionPlan(keys by layer: {', '.join(map(of_layer, self.layers))})"

    @property
    def _token_orders(self) -> set[TokenOrder]:
        return {layer.token_order for layer in self.layers if isinstance(layer, BlockSparse)}

    @property
    def token_order(self) -> TokenOrder:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the block-sparse layers; it does not matter to the others."""
        orders = self._token_orders
        return orders.pop() if orders else "raster"

    @property
    def within_frames(self) -> Dense:
        """As the first layer has it."""
        return self.layers[0].within_frames

    def why_dense(self, *, num_tokens: int, num_patches: int) -> str | None:
        """Whether there are fewer tokens than `min_tokens`, or all layers have a reason."""
        if num_tokens < self.min_tokens:
            return (
                f"{num_tokens} tokens, fewer than min_tokens={self.min_tokens}: attention is "
                "dense, and there are no attention_stats"
            )
        size = {"num_tokens": num_tokens, "num_patches": num_patches}
        reasons = [x.why_dense(**size) for x in self.layers if not isinstance(x, Dense)]
        return reasons[0] if reasons and all(reasons) else None

    def decided(self) -> "AttentionPlan":
        return dataclasses.replace(self, min_tokens=0)

    def with_keys_times(self, factors: Sequence[float]) -> "AttentionPlan":
        layers = (x.with_keys_times([f]) for x, f in zip(self.layers, factors, strict=True))
        return dataclasses.replace(self, layers=tuple(layers))

    def with_mean_keys(self, num_keys: int) -> "AttentionPlan":
        """About so many keys on average in sampled layers, in the same proportions, in steps of 64.

        Other layers stay as they are.
        """
        sampled = [layer.num_keys for layer in self.layers if isinstance(layer, Sampled)]
        if not sampled:
            return self
        steps = num_keys * len(sampled) / sum(sampled) / 64
        scaled = lambda x: min(max(1, round(x.num_keys * steps)) * 64, MOST_KEYS)
        layers = (
            dataclasses.replace(x, num_keys=scaled(x)) if isinstance(x, Sampled) else x
            for x in self.layers
        )
        return dataclasses.replace(self, layers=tuple(layers))

    def of_layers(self, depth: int) -> list[SceneAttention]:
        """The layers.

        Raises:
            ValueError: the trunk has another number of them.
        """
        if depth != len(self.layers):
            raise ValueError(
                f"the plan of attention is for {len(self.layers)} layers, but there are {depth}"
            )
        return list(self.layers)

    def attend(self, q, k, v, **settings):
        raise ValueError("a plan differs by layer: of_layers(depth) has the value of each layer")

    def save(self, path: str | os.PathLike, *, about: Mapping[str, Any] | None = None) -> None:
        """Writes a JSON file.

        Args:
            about: how the plan was found, as JSON-ready values; not read again.

        Raises:
            InputError: the file cannot be written.
        """
        layers = [_to_json(layer) for layer in self.layers]
        content = {"format": FORMAT, "version": _VERSION, "min_tokens": self.min_tokens}
        content |= {"layers": layers, "about": dict(about or {})}
        with replacing(path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "AttentionPlan":
        """Reads what `save` wrote.

        Raises:
            InputError: the file cannot be read, or holds no plan.
        """
        path = Path(path)
        try:
            if not path.is_file():
                raise ValueError("no such file")
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError("too large for a plan")
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or content.get("format") != FORMAT:
                raise ValueError(f'its "format" is not "{FORMAT}"')
            if content.get("version") != _VERSION:
                raise ValueError(f"version {content.get('version')!r}; this reads {_VERSION}")
            layers = content.get("layers")
            if not isinstance(layers, list) or not 0 < len(layers) <= _MOST_LAYERS:
                raise ValueError('its "layers" are no list of values by layer')
            min_tokens = content.get("min_tokens", cls.min_tokens)
            if not isinstance(min_tokens, int) or isinstance(min_tokens, bool):
                raise ValueError(f"min_tokens={min_tokens!r} must be a whole number")
            return cls(layers=tuple(map(_from_json, layers)), min_tokens=min_tokens)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: no plan of attention can be read ({error})") from error


def attention_of(value: SceneAttention | str | os.PathLike) -> SceneAttention:
    """A value, or what stands for one: "dense", "auto", or the path of an `AttentionPlan`.

    "auto" is a sample where that is faster than dense attention on the default device, which is
    dense for few tokens.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, SceneAttention):
        return value
    if value == "dense":
        return Dense()
    if value == "auto":
        return Sampled(
            num_keys=tuned.value("sampled.num_keys"), min_tokens=tuned.value("sampled.min_tokens")
        )
    if not isinstance(value, str | os.PathLike):
        raise InputError(
            f"attention={value!r} must be Dense(), Sampled(...), BlockSparse(...), an "
            'AttentionPlan or its path, "auto" or "dense"'
        )
    return AttentionPlan.load(value)


def _kind(layer: SceneAttention) -> str:
    return next(name for name, kind in _KINDS.items() if type(layer) is kind)


def _to_json(layer: SceneAttention) -> dict[str, Any]:
    assert dataclasses.is_dataclass(layer)
    changed = {
        field.name: value
        for field in dataclasses.fields(layer)
        if (value := getattr(layer, field.name)) != field.default and field.name != "min_tokens"
    }
    return {"kind": _kind(layer), **changed}


def _from_json(fields: Any) -> SceneAttention:
    if not isinstance(fields, dict) or fields.get("kind") not in _KINDS:
        known = ", ".join(_KINDS)
        raise ValueError(f'a layer must be an object with a "kind" ({known}), not {fields!r:.80}')
    settings = {name: value for name, value in fields.items() if name != "kind"}
    try:
        return _KINDS[fields["kind"]](**settings)
    except TypeError as error:
        raise ValueError(f"a layer {fields!r:.80}: {error}") from error
