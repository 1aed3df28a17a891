"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "bad"]


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    area: str
    name: str
    value: str
    """In words."""
    level: Level = "ok"
    """``note``: it works, and could be better. ``bad``: it does not work."""
    advice: str = ""
    """What to change, unless it is well."""
    data: dict[str, Any] = field(default_factory=dict)
    """The same as figures."""
