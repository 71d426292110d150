"""The main job: a small language model over long text, alone and as a ring, with a report."""
