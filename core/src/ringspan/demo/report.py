"""One HTML file that says what a run found: pictures inside, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringspan import pictures
from ringspan.contracts.tokens import Grid
from ringspan.contracts.tokens import Sequence as PlainSequence
from ringspan.demo.files import replacing
from ringspan.demo.results import MOST_OF_ENTROPY, RING_TOLERANCE, Results
from ringspan.patterns import Dilated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write_report"]

_ORDERING = "hilbert"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff;
       max-width: 46rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2rem; }
img { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
         border-bottom: 1px solid #d8dee4; }
.yes { color: #116329; } .no { color: #a40e26; }
figcaption { color: #57606a; font-size: .9rem; }
figure { margin: 1rem 0; }
"""


def write_report(results: Results, path: Path) -> None:
    """Writes `path` atomically."""
    page = "\n".join(_page(results))
    with replacing(path) as fresh:
        fresh.write_text(page, encoding="utf-8")


def _page(results: Results) -> Iterator[str]:
    settings = results.settings
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>Ringspan demo</title><style>{_STYLE}</style></head><body>"
    yield "<h1>A byte-level language model with dilated attention</h1>"
    yield (
        f"<p>Trained for {settings.steps} steps on {escape(results.text)}, "
        f"{settings.context:,} bytes of context at a time.</p>"
    )
    yield _table(("what", "found", "asked for", ""), _verdicts(results))
    yield "<h2>Loss</h2>"
    yield _figure(_loss_curve(results), "Training loss per step, and the held-out loss at the end.")
    yield "<h2>What attends to what</h2>"
    yield _figure(_mask(results), _mask_caption(results))
    yield "<h2>The same model as a ring</h2>"
    yield (
        f"<p>{results.world_size} processes under torchrun, each holding its share of every "
        f"window, took {results.ring_seconds:.1f} s to compute the held-out loss again.</p>"
    )
    yield _table(("rank", "bytes received", "bytes planned"), _rank_rows(results))
    yield "<h2>What ran, and why</h2>"
    yield _table(("part", "candidate", "verdict"), _decision_rows(results.explanation))
    yield "<h2>An ordering</h2>"
    yield _figure(
        pictures.ordering_picture(_ORDERING, Grid(32, 32)),
        "Tokens on a grid can be taken along a space-filling curve: neighbours on the curve are "
        "neighbours on the grid. The model above reads a plain sequence and does not use it.",
    )
    yield "<h2>Numbers</h2>"
    yield _table(("name", "value"), _number_rows(results))
    yield "</body></html>\n"


def _verdicts(results: Results) -> Iterator[tuple[str, str, str, bool | str]]:
    yield (
        "held-out loss",
        f"{results.held_out_loss:.4f} bits/byte, {results.share_of_entropy:.3f} of the order-0 "
        f"entropy {results.order0_entropy:.4f}",
        f"at most {MOST_OF_ENTROPY}",
        results.learnt if results.learning_is_promised else "at default settings",
    )
    yield (
        f"held-out loss as a ring of {results.world_size}",
        f"{results.ring_loss:.4f} bits/byte, relative difference {results.ring_difference:.1e}",
        f"at most {RING_TOLERANCE:.0e}",
        results.ring_agrees,
    )
    yield (
        "bytes received by each rank",
        ", ".join(f"{count:,}" for count in results.ring_bytes_received),
        "as planned",
        results.bytes_agree,
    )


def _loss_curve(results: Results) -> Figure:
    return pictures.curve_picture(
        list(results.training_losses),
        xlabel="step",
        ylabel="bits per byte",
        levels={"order-0 entropy": results.order0_entropy, "held-out loss": results.held_out_loss},
    )


def _mask(results: Results) -> Figure:
    settings = results.settings
    return pictures.pattern_picture(
        Dilated(settings.segment_lengths, settings.dilation_rates),
        PlainSequence(settings.context),
        kv_heads=settings.heads,
        causal=True,
        title=f"segments {settings.segment_lengths}, rates {settings.dilation_rates}, head 0",
    )


def _mask_caption(results: Results) -> str:
    pairs = results.settings.context * (results.settings.context + 1) // 2
    return (
        "Which earlier bytes (across) each byte (down) sees: all of its own short segment, and "
        f"ever thinner samples of longer ones. A dense causal mask would hold {pairs:,} pairs."
    )


def _rank_rows(results: Results) -> Iterator[tuple[int, str, str]]:
    both = zip(results.ring_bytes_received, results.planned_bytes_received, strict=True)
    for rank, (received, planned) in enumerate(both):
        yield rank, f"{received:,}", f"{planned:,}"


def _decision_rows(explanation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for part, decision in explanation["decisions"].items():
        for candidate in decision["candidates"]:
            reasons = "; ".join(candidate["reasons"])
            verdict = f"{candidate['state']}: {reasons}" if reasons else candidate["state"]
            yield part, candidate["name"], verdict


def _number_rows(results: Results) -> Iterator[tuple[str, str]]:
    for name, value in results.settings.as_dict().items():
        yield name.replace("_", " "), str(value)
    yield "training time", f"{results.training_seconds:.1f} s"
    yield "held-out bytes", f"{results.held_out_bytes:,}"
    if results.peak_memory is not None:
        yield "peak memory", f"{results.peak_memory / 2**20:,.0f} MiB"


def _figure(figure: Figure, caption: str) -> str:
    data = base64.b64encode(pictures.png(figure)).decode()
    text = escape(caption, quote=True)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return f'<td class="{"yes" if value else "no"}">{"✓ yes" if value else "✗ no"}</td>'
    return f"<td>{escape(str(value))}</td>"
