"""Benchmarks that come with the library: `python -m ringspan.bench.ring`."""

import os

# torch's profiler announces itself on standard error, unless told so before torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
