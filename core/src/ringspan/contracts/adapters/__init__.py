"""What adapters of other people's kernels share: guards, alignment, scales, a tiny trial."""
