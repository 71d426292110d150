"""The main job: a small language model over long text, alone and as a ring, with a report."""

from ringspan.demo.results import Results
from ringspan.demo.run import Interrupted, Job, run
from ringspan.demo.settings import Settings

__all__ = ["Interrupted", "Job", "Results", "Settings", "run"]
