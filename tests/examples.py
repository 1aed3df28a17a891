"""How many examples the property tests try."""

from __future__ import annotations

from hypothesis import settings


def examples(thorough: int) -> int:
    """The profile's share of what is thorough."""
    return max(1, thorough * settings().max_examples // 100)
