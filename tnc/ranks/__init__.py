"""Rank policies: how large a network may be, for one weight or for all of them together."""

from __future__ import annotations

from tnc.ranks.base import RankPolicy
from tnc.ranks.budget import Budget
from tnc.ranks.policies import Fixed, Ratio, Tolerance
from tnc.ranks.short import policy

__all__ = ["Budget", "Fixed", "RankPolicy", "Ratio", "Tolerance", "policy"]
