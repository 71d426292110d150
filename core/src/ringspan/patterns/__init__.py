"""What attends to what."""

from ringspan.patterns.along import Along
from ringspan.patterns.block_sparse import BlockSparse
from ringspan.patterns.consecutive import Consecutive
from ringspan.patterns.dense import Dense
from ringspan.patterns.dilated import Dilated
from ringspan.patterns.head_groups import HeadGroups
from ringspan.patterns.neighborhood import Neighborhood

__all__ = [
    "Along",
    "BlockSparse",
    "Consecutive",
    "Dense",
    "Dilated",
    "HeadGroups",
    "Neighborhood",
]
