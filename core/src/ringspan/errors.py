"""The error tree under its public name: `ringspan.errors`."""

from ringspan.contracts.errors import *  # noqa: F403
from ringspan.contracts.errors import __all__ as __all__
