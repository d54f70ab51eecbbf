"""Writes an audit: `audit.json` and pictures as PNG files."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from avh_shards import UserError
from avh_shards.format import results_folder
from avh_shards.paths import PNG, AnyPath, FilePath, as_path, atomic_writes, check_outputs, locked
from avh_shards.silence import SILENCE, START
from avh_shards.text import printable
from jax_avh.audit import LONG, Audit, SourceAudit, Trait, audit, before_trimming, verdict
from jax_avh.data.source import open_source

REPORT = "audit.json"
REPORT_KIND = rb'\{.*?"sources":'  # start of the file
PICTURES = ("length", "start", "auc")  # per source: NAME_length.png, ...
COLOURS = {"real": "#0072B2", "fake": "#D55E00", "unknown": "#777777"}  # Okabe and Ito: safe for the colour-blind
LABEL_DASHES = {"real": "-", "fake": "--", "unknown": ":"}  # distinct in print, too
CURVE = "#000000"
GUIDE: dict[str, Any] = {"color": "#000000", "linestyle": "-.", "linewidth": 1}
PANEL = (6.4, 4.4)  # inches
DPI = 120
FONT_SIZE = 13  # points


def write_audit(features: Sequence[AnyPath], output: AnyPath) -> str:
    """Audits folders of shards; writes `audit.json` and pictures.

    Args:
      features: folders of shards, or single shards.
      output: folder for the results.

    Returns:
      The verdict, one sentence per line.

    Raises:
      UserError: features are missing, damaged or given twice, or another run is writing to the folder.
    """
    folder = results_folder(output)
    names = source_names(features)
    possible = [folder / picture for name in names for picture in _pictures(name).values()]
    outputs: dict[AnyPath, bytes] = {folder / REPORT: REPORT_KIND, **dict.fromkeys(possible, PNG)}
    check_outputs(outputs, features)
    with locked(folder):
        result = audit({name: open_source(path) for name, path in zip(names, features, strict=True)})
        figures = draw_audit(result)
        stale = {*possible, *_former_pictures(folder)}
        with atomic_writes([folder / name for name in (REPORT, *figures)], stale) as (report, *pictures):
            report.write_text(
                json.dumps(dataclasses.asdict(result), indent=2, allow_nan=False) + "\n", encoding="utf-8"
            )
            for figure, picture in zip(figures.values(), pictures, strict=True):
                figure.savefig(picture, format="png", dpi=DPI)
    return "\n".join(verdict(result))


def source_names(paths: Sequence[AnyPath]) -> list[str]:
    """Returns a short name for each path, usable in file names: the last part in which they differ, or more parts.

    Raises:
      UserError: a path is given twice, or no distinct names can be found.
    """
    parts = []
    for path in map(as_path, paths):
        whole = path.resolve() if isinstance(path, Path) else path
        parts.append([part for part in str(whole).split("/") if part])
    if twice := next((path for path, own in zip(paths, parts, strict=True) if parts.count(own) > 1), None):
        raise UserError(f"{twice}: is named twice; name each feature set only once")
    while len(paths) > 1 and min(map(len, parts)) > 1 and len({own[-1] for own in parts}) == 1:
        parts = [own[:-1] for own in parts]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["-".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"{paths[0]}: its name is ambiguous among the feature sets; rename its folder")


def draw_audit(result: Audit) -> dict[str, Figure]:
    """Draws the pictures of an audit and returns them by file name."""
    figures = {}
    for name, source in result.sources.items():
        file = _pictures(name)
        figures[file["length"]] = _figure([_length], source)
        if source.leading_silence_ms:
            figures[file["start"]] = _figure([_silence, _amplitude] if source.amplitude else [_silence], source)
        if source.by_threshold and source.leading_silence_ms and source.leading_silence_ms.auc is not None:
            figures[file["auc"]] = _figure([_by_threshold, _by_moment], source)
    return figures


def _pictures(name: str) -> dict[str, str]:
    """Returns the file name of each of a source's pictures."""
    return {picture: f"{name}_{picture}.png" for picture in PICTURES}


def _former_pictures(folder: FilePath) -> list[FilePath]:
    """Returns the pictures of an earlier audit in a folder."""
    try:
        sources = json.loads((folder / REPORT).read_text(encoding="utf-8"))["sources"]
        inside = [name for name in map(str, sources) if "/" not in name]
        return [path for name in inside for file in _pictures(name).values() if (path := folder / file).is_file()]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # no audit, or a file of another kind
        return []


def _figure(draw: Sequence[Callable[[Axes, SourceAudit], None]], source: SourceAudit) -> Figure:
    figure = Figure((PANEL[0] * len(draw), PANEL[1]), layout="constrained")
    figure.suptitle(printable(source.title), parse_math=False, fontsize=FONT_SIZE + 3, fontweight="bold")
    for axes, panel in zip(figure.subplots(1, len(draw), squeeze=False)[0], draw, strict=True):
        panel(axes, source)
        axes.grid(alpha=0.25)
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(FONT_SIZE)
        axes.tick_params(labelsize=FONT_SIZE - 2)
        axes.legend(fontsize=FONT_SIZE - 2)
    return figure


def _length(axes: Axes, source: SourceAudit) -> None:
    _histogram(axes, source.length_s)
    axes.set(title="length", xlabel="length, s (last bar: or longer)", xlim=(0, None))


def _silence(axes: Axes, source: SourceAudit) -> None:
    _histogram(axes, source.leading_silence_ms)
    axes.axvline(LONG, **GUIDE, label=f"{LONG:g} ms")
    title = f"leading silence{before_trimming(source)}"
    axes.set(title=title, xlabel="leading silence, ms (last bar: or longer)", xlim=(0, None))


def _amplitude(axes: Axes, source: SourceAudit) -> None:
    _histogram(axes, source.amplitude, log=True)
    axes.axvline(SILENCE, **GUIDE, label=f"silence: up to {SILENCE:g}")
    axes.set(title=f"largest amplitude in the first {1000 * START:g} ms", xscale="log")
    axes.set_xlabel("amplitude, relative to full scale (first bar: or quieter)")


def _by_threshold(axes: Axes, source: SourceAudit) -> None:
    assert source.by_threshold
    _curve(axes, source.by_threshold.threshold, source.by_threshold.auc)
    axes.axvline(SILENCE, **GUIDE, label=f"{SILENCE:g}")
    axes.set(title="leading silence as a score", xlabel="threshold of silence, relative to full scale")


def _by_moment(axes: Axes, source: SourceAudit) -> None:
    assert source.by_moment
    moments = source.by_moment.first_ms
    _curve(axes, moments, source.by_moment.auc)
    axes.axvline(1000 * START, **GUIDE, label=f"{1000 * START:g} ms")
    axes.set(title="minus the largest amplitude as a score", xlabel="duration from the start, ms")
    axes.set_xticks(moments, [f"{ms:g}" for ms in moments])
    axes.minorticks_off()


def _curve(axes: Axes, places: Sequence[float], aucs: Sequence[float | None]) -> None:
    axes.plot(places, cast(Any, aucs), color=CURVE, marker="o", markersize=5, linewidth=2, label="AUC")
    axes.axhline(0.5, color=CURVE, linestyle="--", linewidth=1, label="chance")
    axes.set(xscale="log", ylabel="AUC", ylim=(-0.03, 1.03))


def _histogram(axes: Axes, trait: Trait | None, log: bool = False) -> None:
    """Draws the shares of each label's clips; the open-ended last bin is drawn as wide as the one before."""
    assert trait
    starts = trait.bins
    if log:
        starts = [starts[1] ** 2 / starts[2], *starts[1:]]  # a logarithmic axis has no 0
    edges = [*starts, starts[-1] ** 2 / starts[-2] if log else 2 * starts[-1] - starts[-2]]
    for label, group in trait.label.items():
        shares = [100 * count / group.count for count in group.histogram]
        name = f"{label} ({group.count:,} clips)"
        axes.stairs(shares, edges, label=name, color=COLOURS[label], linestyle=LABEL_DASHES[label], linewidth=2)
        if label != "unknown":
            axes.stairs(shares, edges, color=COLOURS[label], alpha=0.25, fill=True)
    axes.set(ylabel="% of the label's clips", ylim=(0, None))
