"""Which implementation? Discovery, probing, configuration and selection of plugins.

Knows nothing of attention: kinds of hooks, problems and settings are handed in.
"""
