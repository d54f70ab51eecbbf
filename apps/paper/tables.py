"""The paper's tables: our numbers beside the published ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from apps.paper.plan import DATASETS, SHARES, STATES
from avh_shards import format_table
from jax_avh.evaluation import POOLINGS

Published = Mapping[tuple[str, str], tuple[float, float]]
# Published AUC in %, untrimmed and trimmed, of (detector, data set): table 1 as on the poster, and table 2. The two are
# not of the same clips; in the first, what is supervised was trained and tested within a data set.
POSTER: Published = {
    ("leading_silence", "fakeavceleb"): (98.4, 54.8),
    ("leading_silence", "av_deepfake1m"): (98.2, 50.6),
    ("rawnet2-fakeavceleb", "fakeavceleb"): (99.9, 97.3),
    ("rawnet2-av_deepfake1m", "av_deepfake1m"): (99.9, 88.1),
    ("mds-fakeavceleb", "fakeavceleb"): (90.4, 73.8),
    ("mds-av_deepfake1m", "av_deepfake1m"): (99.2, 54.9),
    ("avad", "fakeavceleb"): (95.2, 95.2),
    ("avad", "av_deepfake1m"): (52.9, 52.9),
}
PUBLISHED: Published = {
    ("avh_sup-fakeavceleb", "fakeavceleb"): (99.2, 99.2),
    ("avh_sup-fakeavceleb", "av_deepfake1m"): (69.0, 63.6),
    ("avh_sup-av_deepfake1m", "fakeavceleb"): (77.5, 70.8),
    ("avh_sup-av_deepfake1m", "av_deepfake1m"): (100.0, 83.1),
    ("avad", "fakeavceleb"): (84.5, 84.7),
    ("avad", "av_deepfake1m"): (54.3, 54.3),
    ("speech_forensics", "fakeavceleb"): (98.8, 98.8),
    ("speech_forensics", "av_deepfake1m"): (68.8, 68.2),
    ("avh_align-mlp", "fakeavceleb"): (94.6, 94.6),
    ("avh_align-mlp", "av_deepfake1m"): (85.9, 83.5),
}


class Table(NamedTuple):
    """Rows of a table: their titles, and the detector and pooling that each shows; None = its own pooling."""

    title: str
    rows: tuple[tuple[str, str, str | None], ...]
    published: Published = PUBLISHED


TABLES = (
    Table(
        "Table 1: silence, and supervised methods against one that is not",
        (
            ("leading silence, duration", "leading_silence", None),
            ("leading silence, amplitude", "leading_amplitude", None),
            ("RawNet2, trained on FakeAVCeleb", "rawnet2-fakeavceleb", None),
            ("RawNet2, trained on AV-Deepfake1M", "rawnet2-av_deepfake1m", None),
            ("MDS on mouth crops, trained on FakeAVCeleb", "mds-fakeavceleb", None),
            ("MDS on mouth crops, trained on AV-Deepfake1M", "mds-av_deepfake1m", None),
            ("AVAD on alignment scores, trained on AV-Deepfake1M", "avad", None),
        ),
        POSTER,
    ),
    Table(
        "Table 2: methods",
        (
            ("AVH-Align/sup, trained on FakeAVCeleb", "avh_sup-fakeavceleb", None),
            ("AVH-Align/sup, trained on AV-Deepfake1M", "avh_sup-av_deepfake1m", None),
            ("AVAD on alignment scores, trained on AV-Deepfake1M", "avad", None),
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
        (r["method"], r["pooling"], r["own"], _name(r["dataset"]), r["trimmed"]): r["metrics"]["auc"]
        for r in results
        if r["group"] == "all"
    }
    titles = [
        max((r["dataset"] for r in results if _name(r["dataset"]) == name), key=len, default=name)
        for name in DATASETS.values()
    ]
    return "\n\n".join(_format(table, found, titles) for table in TABLES)


def _name(title: str) -> str:
    """A data set's name without its mark, such as " (SIMULATED)"."""
    return title.partition(" (")[0]


def _format(table: Table, found: dict, titles: Sequence[str]) -> str:
    lines = [[f"{table.title} (AUC %)", *(f"{title}: ours (paper's)" for title in titles)]]
    for title, detector, pooling in table.rows:
        published = table.published if pooling is None else {}
        cells = [_cell(detector, pooling, dataset, found, published) for dataset in DATASETS]
        lines += [[title, *cells]] if any(cells) else []
    return format_table(lines)


def _cell(detector: str, pooling: str | None, dataset: str, found: dict, published: Published) -> str:
    ours = [_auc(detector, pooling, DATASETS[dataset], trimmed, found) for trimmed in STATES.values()]
    if all(auc is None for auc in ours):
        return ""
    theirs = published.get((detector, dataset))
    return _arrow(auc and 100 * auc for auc in ours) + (f" ({_arrow(theirs)})" if theirs else "")


def _auc(detector: str, pooling: str | None, dataset: str, trimmed: bool, found: dict) -> float | None:
    matching = (
        auc
        for (name, its_pooling, own, *where), auc in found.items()
        if name == detector and where == [dataset, trimmed] and (own if pooling is None else its_pooling == pooling)
    )
    return next(matching, None)


def _arrow(values: Iterable[float | None]) -> str:
    return " -> ".join("-" if value is None else f"{value:.1f}" for value in values)
