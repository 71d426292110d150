"""The page `docs/reference/patterns.md`.

python -m tests.reference.page      # or `make reference`: writes it anew
"""

from __future__ import annotations

from tests.isolation.workspace import ROOT
from tests.reference.cases import MODES, ROWS
from tests.reference.cells import ON_CPU, ON_CUDA, reasons

__all__ = ["PAGE", "rendered"]

PAGE = ROOT / "docs" / "reference" / "patterns.md"

HEAD = """\
# Every pattern in every mode, on every backend

<!-- Generated: `make reference` writes this page, tests/test_reference_table.py compares it. -->

A test run fills these tables. In each cell a pattern was called in a mode through
`ringspan.attention`, forward and backward, with the backend named:

- **exact**: the output, the log-sum-exp and all gradients meet the one rule of accuracy against the
  formula in float64 (`ringspan.testing.assert_exact`).
- **refused** (note): the call raises before any work, for the reason in the note.
- **unmeasured**: the kernel declares that it takes the work, and was **not measured on a GPU**. For
  CUDA kernels nothing ran: the tables are their declared limits, in bfloat16 on a Hopper GPU.

A backend that is named is strict. With the default, `"auto"`, each kind of mask goes to the best
backend that takes it: a call is refused only where `manual`, which takes every mask on every
device, refuses it too.

Sequences have 36 tokens, 4 heads and head dimension 4. `tests/test_exactness.py` draws longer and
odder ones at random; `tests/test_ring_modes.py` has several ranks.

| mode | what it is |
|---|---|
| plain | none of the others; float32 on a CPU |
| causal | `causal=True` |
| documents | `documents=` of 13 and 23 tokens; points instead of a grid, which is one document |
| equal documents | of 18 tokens each; blocks that are evaluated beforehand are so for 18 |
| padding | `key_padding=`, scattered, another for each sequence of the batch |
| sink | `sink=`, with its gradient |
| dropout | `dropout_p=0.3` with a seed |
| chunk, causal chunk | `query_positions=range(20, 31)` with 36 keys |
| cross | 11 queries that are another sequence than the 36 keys |
| GQA | 2 key/value heads for 4 query heads |
| Dv != D | values of another dimension than queries and keys |
| layout | stored along `"hilbert"` on a grid (a neighbourhood on a sequence: `"identity"`) |
| along | the pattern taken along `"hilbert"` on a grid |
| deterministic | `torch.use_deterministic_algorithms(True)`: the same bits twice, no stale memory |
| together | causal, equal documents, padding, sink, GQA and Dv != D at once |
"""


def rendered() -> str:
    """The page, from calls of every pattern in every mode."""
    notes: dict[str, int] = {}
    tables = {backend: [f"## {backend}\n"] for backend in (*ON_CPU, *ON_CUDA)}
    for title, modes in MODES.items():
        for table in tables.values():
            table.append(f"| {title} | {' | '.join(modes)} |\n|---|{'---|' * len(modes)}")
        for row in ROWS:
            found = [reasons(row, mode, changes) for mode, changes in modes.items()]
            for backend, table in tables.items():
                cells = [_cell(backend, against[backend], notes) for against in found]
                table.append(f"| {row.title} | {' | '.join(cells)} |")
        for table in tables.values():
            table.append("")
    listed = [f"{number}. {reason}" for reason, number in notes.items()]
    parts = [HEAD, *("\n".join(table) for table in tables.values()), "## Notes\n", *listed]
    return "\n".join(parts) + "\n"


def _cell(backend: str, against: tuple[str, ...], notes: dict[str, int]) -> str:
    if not against:
        return "exact" if backend in ON_CPU else "unmeasured"
    numbers = sorted(notes.setdefault(reason, len(notes) + 1) for reason in against)
    return f"refused ({', '.join(map(str, numbers))})"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(rendered())
