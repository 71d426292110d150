"""How an adapter of a CUDA package is tested where there is neither the package nor a GPU.

A stand-in has the signatures and the conventions of the package, and computes on a CPU: the adapter
is tested whole, but for the kernel. `CudaAdapterSuite` has the tests that every such adapter needs.

- `on_cpu`: an adapter with CPU tensors let through.
- `packages`: modules where an adapter imports a package, and what pip lists.
- `gpus`: a GPU as far as a probe asks before it calls the kernel.
- `dense`: attention and its gradients, all scores at once.
- `flash`: the same as a FlashAttention interface takes it, with tiles of many lengths.
- `memory`: what a kernel reads without a look at strides.
"""

import pytest

pytest.register_assert_rewrite(f"{__name__}.flash")
