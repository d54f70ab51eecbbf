"""The paper's tables: our numbers beside the published ones."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from apps.paper.plan import DATASETS, SHARES, STATES
from jax_avh.evaluation import POOLINGS

# Published AUC in %, untrimmed and trimmed, of (detector, data set): tables 1 and 2, the first as on the poster.
PUBLISHED = {
    ("leading_silence", "fakeavceleb"): (98.4, 54.8),
    ("leading_silence", "av_deepfake1m"): (98.2, 50.6),
    ("avh_sup-fakeavceleb", "fakeavceleb"): (99.2, 99.2),
    ("avh_sup-fakeavceleb", "av_deepfake1m"): (69.0, 63.6),
    ("avh_sup-av_deepfake1m", "fakeavceleb"): (77.5, 70.8),
    ("avh_sup-av_deepfake1m", "av_deepfake1m"): (100.0, 83.1),
    ("speech_forensics", "fakeavceleb"): (98.8, 98.8),
    ("speech_forensics", "av_deepfake1m"): (68.8, 68.2),
    ("avh_align-mlp", "fakeavceleb"): (94.6, 94.6),
    ("avh_align-mlp", "av_deepfake1m"): (85.9, 83.5),
}


class Table(NamedTuple):
    """Rows of a table: their titles, and the detector and pooling that each shows; None = its own pooling."""

    title: str
    rows: tuple[tuple[str, str, str | None], ...]


TABLES = (
    Table(
        "Table 1: supervised by silence alone",
        (
            ("leading silence, duration", "leading_silence", None),
            ("leading silence, amplitude", "leading_amplitude", None),
        ),
    ),
    Table(
        "Table 2: methods",
        (
            ("AVH-Align/sup, trained on FakeAVCeleb", "avh_sup-fakeavceleb", None),
            ("AVH-Align/sup, trained on AV-Deepfake1M", "avh_sup-av_deepfake1m", None),
            ("SpeechForensics", "speech_forensics", None),
            ("FACTOR, audio-visual", "factor", None),
            ("AVH-Align, trained on AV-Deepfake1M", "avh_align-mlp", None),
            ("clip length (audit)", "clip_length", None),
        ),
    ),
    Table(
        "Table 4: ablations of AVH-Align",
        (
            ("as it is", "avh_align-mlp", None),
            ("features not normalised", "avh_align-not-normalised", None),
            *((f"{share:.0%} of the training clips", f"avh_align-{share:.0%}", None) for share in SHARES),
            *((f"pooling: {name}", "avh_align-mlp", name) for name in POOLINGS),
        ),
    ),
    Table(
        "Table 5: heads",
        (
            ("AVH-Align/sup, MLP", "avh_sup-av_deepfake1m", None),
            ("AVH-Align/sup, linear", "avh_sup-linear", None),
            ("AVH-Align, MLP", "avh_align-mlp", None),
            ("AVH-Align, linear", "avh_align-linear", None),
        ),
    ),
)


def format_tables(results: Sequence[dict]) -> str:
    """The tables as text: AUC in %, untrimmed -> trimmed, with the published numbers where there are any."""
    found = {
        (r["method"], r["pooling"], r["own"], r["dataset"], r["trimmed"]): r["metrics"]["auc"]
        for r in results
        if r["group"] == "all"
    }
    return "\n\n".join(_format(table, found) for table in TABLES)


def _format(table: Table, found: dict) -> str:
    lines = [[f"{table.title} (AUC %)", *(f"{name}: ours (paper's)" for name in DATASETS.values())]]
    for title, detector, pooling in table.rows:
        cells = [_cell(detector, pooling, dataset, found) for dataset in DATASETS]
        lines += [[title, *cells]] if any(cells) else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(detector: str, pooling: str | None, dataset: str, found: dict) -> str:
    ours = [_auc(detector, pooling, DATASETS[dataset], trimmed, found) for trimmed in STATES.values()]
    if all(auc is None for auc in ours):
        return ""
    published = PUBLISHED.get((detector, dataset)) if pooling is None else None
    return _arrow(auc and 100 * auc for auc in ours) + (f" ({_arrow(published)})" if published else "")


def _auc(detector: str, pooling: str | None, dataset: str, trimmed: bool, found: dict) -> float | None:
    matching = (
        auc
        for (name, its_pooling, own, *where), auc in found.items()
        if name == detector and where == [dataset, trimmed] and (own if pooling is None else its_pooling == pooling)
    )
    return next(matching, None)


def _arrow(values: Iterable[float | None]) -> str:
    return " -> ".join("-" if value is None else f"{value:.1f}" for value in values)
