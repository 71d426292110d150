"""Drop-in modules for other libraries, one package each; none of those is imported.

`ringspan.compat.torchscale`: LongNet's dilated attention, for weights published with torchscale.
"""

from ringspan.compat import torchscale

__all__ = ["torchscale"]
