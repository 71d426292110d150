"""What attends to what."""

from ringspan.patterns.along import Along
from ringspan.patterns.dense import Dense
from ringspan.patterns.dilated import Dilated

__all__ = ["Along", "Dense", "Dilated"]
