"""What a conversion did."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What was read, left out and written; `str()` is for people."""

    source: str
    """The official checkpoint."""
    destination: str | None
    """Where ours was written, or None if it was not."""
    model: str
    """Name of the model, such as `vggt`."""
    recognised_as: str
    """The released model, or where the configuration comes from."""
    keys_read: int
    """Official keys that became parameters."""
    ignored: dict[str, str]
    """Why, by official key, the other keys were left out."""
    parameters: int
    """Number of parameters (arrays) filled."""
    scalars: int
    """Number of values in them."""
    dtypes: dict[str, int]
    """Number of values by type."""
    checksum: str
    """Checksum of the parameters, as `native.checksum` computes it."""
    seconds: float
    """Time for reading, converting and checking, without writing."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for key, reason in self.ignored.items():
            reasons.setdefault(reason, []).append(key)
        dtypes = ", ".join(f"{count:,} in {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"{self.source} -> {self.destination or '(not written)'}",
            f"  model       {self.model}, {self.recognised_as}",
            f"  keys        {self.keys_read} read, {len(self.ignored)} ignored",
            *(f"              {_name(keys)}: {reason}" for reason, keys in reasons.items()),
            f"  parameters  {self.parameters} arrays, {self.scalars:,} values ({dtypes})",
            f"  checksum    {self.checksum}",
            f"  time        {self.seconds:.1f} s",
        ]
        return "\n".join(lines)


def _name(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"
