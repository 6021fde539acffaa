"""What made a scene: model, versions, options, device and time."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeGuard

from vggt_jax.weights import NAME

NOT_MEASURED = (
    f"these results are of {NAME} that ships with vggt-jax, and whether they agree with "
    "themselves was not measured; for photographs another model, such as facebook/VGGT-1B, is safer"
)
"""What is said of results of the small model without a measure of their own, as earlier versions
wrote them."""

_LONGEST = 1000  # Characters of a value that comes from a file.


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """What made a scene; what is not known is empty or None.

    All are equal to each other: JAX compares what is static in two scenes to tell whether they have
    the same structure, and the time at which one was made is no part of that.

    Attributes:
        model: as it was named: a hub name or a path; or what kind of model it is.
        checksum: of its parameters, as our checkpoints have it.
        is_small: whether it is the small model that ships with the package.
        agreement: how far the scene agrees with itself, in [0, 1], see
            `vggt_jax.self_agreement`; None where it was not measured: for a model that was not
            calibrated (`least_agreement`), and for a single photograph.
        least_agreement: the agreement from which on results of this model can be relied on, as its
            checkpoint says.
        versions: of Python and packages, by name.
        device: what it ran on, such as "NVIDIA H100 80GB HBM3".
        options: of the reconstruction that were not left to their defaults, by name.
        attention, compute_dtype: what really ran.
        created: when, in UTC, as ISO 8601.
        seconds: how long it took from photographs in memory to the scene, compiling included unless
            that was done before.
    """

    model: str = ""
    checksum: str | None = None
    is_small: bool = False
    agreement: float | None = None
    least_agreement: float | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attention: str = ""
    compute_dtype: str = ""
    created: str = ""
    seconds: float | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Provenance)

    def __hash__(self) -> int:
        return hash(Provenance)

    def __bool__(self) -> bool:
        return bool(self.model)

    def __str__(self) -> str:
        """On one line, for people and for the comments of files; empty where nothing is known."""
        if not self:
            return ""
        checksum = f" ({self.checksum[:12]})" if self.checksum else ""
        parts = [
            f"vggt-jax {self.versions.get('vggt_jax', 'of an unknown version')}",
            f"{self.model}{checksum}",
            self.attention,
            f"{self.compute_dtype} on {self.device}" if self.device else self.compute_dtype,
            self.created,
        ]
        return ", ".join(filter(None, parts))

    @property
    def warning(self) -> str:
        """What a person should know before they rely on the scene, in a sentence; or nothing.

        The one rule for all places that say so. A single photograph has no cameras to be wrong.
        """
        if self.agreement is None or self.least_agreement is None:
            is_unknown = self.is_small and self.least_agreement is None
            return NOT_MEASURED if is_unknown else ""
        if self.agreement >= self.least_agreement:
            return ""
        return (
            "this is probably no reconstruction: the cameras, depth and points that "
            f"{self.model} predicts agree with each other by {self.agreement:.2f} of 1, and many "
            f"results below {self.least_agreement:.2f} are wrong; photographs that show more of "
            "the same may help, or another model, such as facebook/VGGT-1B"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them; nothing where nothing is known."""
        if not self:
            return {}
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Provenance":
        """What a file says, as far as it says something that can be: anybody may have edited it."""
        texts = ("model", "checksum", "device", "attention", "compute_dtype", "created")
        found: dict[str, Any] = {
            name: fields[name][:_LONGEST] for name in texts if isinstance(fields.get(name), str)
        }
        versions, options = fields.get("versions"), fields.get("options")
        if isinstance(versions, dict):
            found["versions"] = {str(name): str(value) for name, value in versions.items()}
        if isinstance(options, dict):
            found["options"] = options
        if isinstance(seconds := fields.get("seconds"), int | float):
            found["seconds"] = float(seconds)
        for name in ("agreement", "least_agreement"):
            if is_share(share := fields.get(name)):
                found[name] = float(share)
        return cls(is_small=fields.get("is_small") is True, **found)


def is_share(value: Any) -> TypeGuard[float]:
    """Whether something that a file says is a number in [0, 1]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
