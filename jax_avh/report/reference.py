"""Writes a reference, and a page that shows its thresholds and how well its probabilities hold."""

import os
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from avh_shards.clip import FRAME_RATE
from avh_shards.format import caveat
from avh_shards.paths import HTML, AnyPath, as_path, atomic_write, check_outputs
from avh_shards.text import format_table, one_line
from jax_avh.evaluation.calibration import Calibrated, calibrate
from jax_avh.reference import RATES, REFERENCE_KIND, Reference, clips_needed, write_reference
from jax_avh.report import charts
from jax_avh.report.page import render_page


def write_calibration(
    scores: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    page: str | os.PathLike | None = None,
    fakes: Sequence[str | os.PathLike] = (),
    dataset: str | None = None,
    protocol: str = "",
    rule: str = "platt",
) -> str:
    """Writes a reference of the real clips in score files.

    Args:
      scores: score files of real clips.
      output: the reference to write.
      page: HTML file to show it in; None = none.
      fakes: score files of fakes.
      dataset: see `calibrate`, as for the two below.
      protocol: what a reader should know of the clips.
      rule: "platt" or "isotonic".

    Returns:
      The thresholds as a printable table, followed by notes.

    Raises:
      UserError: see `calibrate`; or an output cannot be written or is an input.
    """
    outputs: dict[AnyPath, bytes] = {as_path(output): REFERENCE_KIND}
    if page is not None:
        outputs[as_path(page)] = HTML
    check_outputs(outputs, [*scores, *fakes])
    calibrated = calibrate(scores, fakes, dataset, protocol, rule)
    if page is not None:
        with atomic_write(page) as temporary:
            temporary.write_text(render_reference(calibrated), encoding="utf-8")
    write_reference(calibrated.reference, output)
    return format_reference(calibrated)


def format_reference(calibrated: Calibrated) -> str:
    """Formats the thresholds by length, then what a reader should know."""
    reference = calibrated.reference
    title = f"{reference.title}; scores of {reference.attributes['method']}, pooled by {reference.own}"
    table = format_table([["seconds", "real clips", *(f"at {100 * r:g} %" for r in RATES)], *_rows(reference)])
    lines = []
    if (found := calibrated.reliability) and reference.calibration:
        fakes = f"probabilities from {reference.calibration.fake:,} fakes"
        lines.append(f"{fakes}: calibration error {found.calibration_error:.3f}")
    lines += filter(None, [*calibrated.notes, caveat(reference.attributes)])
    return "\n".join([one_line(title), table, *map(one_line, lines)])


def render_reference(calibrated: Calibrated) -> str:
    """Renders a reference as a self-contained page."""
    reference = calibrated.reference
    real = reference.scores[reference.own]
    groups: dict[str, tuple[int, np.ndarray]] = {charts.FILLED: (0, real)}
    groups |= {"fake": (1, calibrated.fakes)} if len(calibrated.fakes) else {}
    pictures: dict[str, Markup] = {}
    if found := calibrated.reliability:
        mean, share, _ = (np.array(column) for column in zip(*found.bins, strict=True))
        label = "Reliability diagram: share of fakes against the mean probability"
        pictures["Reliability"] = charts.reliability_chart("reliability", label, charts.Line(0, mean, share))
        line = charts.Line(0, np.array(found.kept), np.array(found.accuracy))
        label = "Accuracy against the share of clips that are kept"
        pictures["Accuracy of the surest clips"] = charts.kept_chart("kept", label, line)
    return render_page(
        "reference.html.jinja",
        reference=reference,
        caveat=caveat(reference.attributes),
        notes=calibrated.notes,
        fakes=len(calibrated.fakes),
        reliability=calibrated.reliability,
        rates=RATES,
        rows=_rows(reference),
        seconds=[reference.length[0] / FRAME_RATE, reference.length[-1] / FRAME_RATE],
        histogram=charts.histogram_chart("scores", f"Histogram of clip scores: {', '.join(groups)}", groups),
        pictures=pictures,
    )


def _rows(reference: Reference) -> list[list[str]]:
    """Returns the cells of each group of similar length: seconds, clips, threshold at each of the RATES."""
    rows = []
    for group in reference.groups(reference.own):
        seconds = f"{group.shortest / FRAME_RATE:.1f}-{group.longest / FRAME_RATE:.1f}"
        thresholds = []
        for rate in RATES:
            threshold = group.threshold(rate)
            needed = f"takes {clips_needed(rate):,} real clips"
            thresholds.append(needed if threshold is None else f"above {threshold:.4f}")
        rows.append([seconds, f"{len(group.score):,}", *thresholds])
    return rows
