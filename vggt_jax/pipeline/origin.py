"""What is written down of how a scene was made."""

import datetime
import hashlib
import json
import platform
from typing import Any

import jax

import vggt_jax
from vggt_jax.models.base import SceneModel
from vggt_jax.models.origin import origin_of
from vggt_jax.pipeline.options import Options
from vggt_jax.pipeline.plan import Plan
from vggt_jax.scene.provenance import Provenance

_LONGEST_VALUE = 300  # Characters of an option as JSON: arrays are told of, not repeated.


def provenance_of(
    model: SceneModel, plan: Plan, options: Options, *, seconds: float | None = None
) -> Provenance:
    """What made a scene that was reconstructed now.

    Args:
        seconds: how long it took; None where it was one of a batch.
    """
    origin = origin_of(model)
    return Provenance(
        model=model.traits.title if origin is None else origin.source,
        checksum=origin and origin.checksum,
        is_small=origin is not None and origin.is_small,
        least_agreement=origin and origin.least_agreement,
        versions={
            "vggt_jax": vggt_jax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        device=jax.devices()[0].device_kind,
        options=_changed(options),
        attention=str(plan.attention),
        compute_dtype=plan.compute_dtype,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        seconds=seconds,
    )


def fingerprint(model: SceneModel) -> str:
    """Tells models apart: a hash of the configuration and of some numbers of every parameter."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for leaf in jax.device_get(_some_numbers(model)):
        digest.update(str(leaf.dtype).encode() + leaf.tobytes())
    return digest.hexdigest()[:16]


@jax.jit
def _some_numbers(model: SceneModel) -> list[jax.Array]:
    """Of every parameter, by one program: a GPU would compile two for each shape."""
    return [leaf.reshape(-1)[:64] for leaf in jax.tree.leaves(model)]


def _changed(options: Options) -> dict[str, Any]:
    """The options with values of their own."""
    defaults = Options().of_results()
    found = {}
    for name, value in options.of_results().items():
        if value == defaults[name]:
            continue
        is_short = len(json.dumps(value, default=str)) <= _LONGEST_VALUE
        found[name] = value if is_short else "given"
    return found
