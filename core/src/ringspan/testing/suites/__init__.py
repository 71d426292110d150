"""The conformance kit: standard tests for every kind of provider.

- `base`: what a suite is, and how a standard test may be replaced.
- `provider`: what holds for providers of every kind.
- `attention_backend`, `ordering`, `communicator`: one suite per kind.
- `virtual_communicator`: the suite of communicators whose ranks are virtual.
- `tiles`: batches of tiles as data, with their tensors and their exact results.
- `scenarios`: what each rank does in the tests of a communicator.
- `check`, `installed`: the suites of everything that is installed, for `ringspan plugin check`.

The modules import pytest; `ringspan.testing` loads them when one of their names is asked for.
"""
