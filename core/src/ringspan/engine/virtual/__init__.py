"""All ranks in one process: their shards stream through one device."""
