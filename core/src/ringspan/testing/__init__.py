"""What tests measure Ringspan and its plugins with; written apart from the library's own plan.

- `reference`: the formula in float64, evaluated literally, with its gradients.
- `multiplicity`: how often a query sees a key, literally from the definition of each pattern.
- `accuracy`: the one rule that says whether a result is exact for its dtype.
- `configuration`: one problem as data, with its random tensors.
- `strategies`: hypothesis strategies for configurations that have broken others.
- `toy`: an attention backend of a few lines, for tests of what is above backends.
"""

from ringspan.testing.accuracy import Measurement, Yardstick, assert_exact, measure, yardstick
from ringspan.testing.reference import ReferenceResult, reference

__all__ = [
    "Measurement",
    "ReferenceResult",
    "Yardstick",
    "assert_exact",
    "measure",
    "reference",
    "yardstick",
]
