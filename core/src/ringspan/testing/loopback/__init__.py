"""Many ranks in one process, a thread each: rings that a property test can have hundreds of.

- `threads`: `Loopback`, the threads and what they are asked to run.
- `world`: the default process group, for each thread another.
- `group`: the process groups of torch.distributed, as such a thread sees them.
- `wires`: where threads meet: messages by tag, collectives by order, and the end of all waiting.
"""

from ringspan.testing.loopback.threads import Loopback

__all__ = ["Loopback"]
