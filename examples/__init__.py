"""Examples on real data: `python -m examples.image` and `python -m examples.slide`."""
