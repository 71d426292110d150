"""Published LongNet weights, without flash-attn and on any device.

    from ringspan.compat import torchscale

    torchscale.replace(model)       # every DilatedAttention of a model, in place

torchscale need not be installed, and what it imports need not work.
"""

from ringspan.compat.torchscale.attention import DilatedAttention
from ringspan.compat.torchscale.replace import replace

__all__ = ["DilatedAttention", "replace"]
