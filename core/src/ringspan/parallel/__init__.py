"""Training on a ring: rows to ranks and back, positions, labels, losses, and what travelled.

Every function that is differentiated on several ranks names its gradient convention.
"""

from ringspan.parallel.labels import next_token_labels
from ringspan.parallel.losses import token_mean
from ringspan.parallel.positions import position_ids
from ringspan.parallel.rows import gather, shard
from ringspan.parallel.traffic import Traffic, traffic
from ringspan.plan.balance import choose_layout

__all__ = [
    "Traffic",
    "choose_layout",
    "gather",
    "next_token_labels",
    "position_ids",
    "shard",
    "token_mean",
    "traffic",
]
