"""Formats the paper's tables: our numbers next to the published ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from avh_shards.format import Variant
from avh_shards.text import format_table
from jax_avh.evaluation import POOLINGS
from jax_avh.evaluation.results import Result

TEST_DATASETS = {"fakeavceleb": "FakeAVCeleb", "av_deepfake1m": "AV-Deepfake1M"}  # folder -> name, in the tables' order
TRAINING_SHARES = (0.1, 0.5)  # of the real training clips: the ablation of the training set's size

Published = Mapping[tuple[str, str], tuple[float, float]]
# Published AUC in %, untrimmed and trimmed, of (experiment, data set): table 1 as on the poster, and table 2. Their
# clips differ; in the first, supervised methods were trained and tested within a data set.
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


class TableRow(NamedTuple):
    """The AUC of an experiment."""

    title: str
    experiment: str  # its name
    pooling: str | None = None  # None = the method's own


class PaperTable(NamedTuple):
    """A table of the paper."""

    title: str
    rows: tuple[TableRow, ...]
    published: Published = PUBLISHED


PAPER_TABLES = (
    PaperTable(
        "Table 1: silence, and supervised methods against one that is not",
        (
            TableRow("leading silence, duration", "leading_silence"),
            TableRow("leading silence, amplitude", "leading_amplitude"),
            TableRow("RawNet2, trained on FakeAVCeleb", "rawnet2-fakeavceleb"),
            TableRow("RawNet2, trained on AV-Deepfake1M", "rawnet2-av_deepfake1m"),
            TableRow("MDS on mouth crops, trained on FakeAVCeleb", "mds-fakeavceleb"),
            TableRow("MDS on mouth crops, trained on AV-Deepfake1M", "mds-av_deepfake1m"),
            TableRow("AVAD on alignment scores, trained on AV-Deepfake1M", "avad"),
        ),
        POSTER,
    ),
    PaperTable(
        "Table 2: methods",
        (
            TableRow("AVH-Align/sup, trained on FakeAVCeleb", "avh_sup-fakeavceleb"),
            TableRow("AVH-Align/sup, trained on AV-Deepfake1M", "avh_sup-av_deepfake1m"),
            TableRow("AVAD on alignment scores, trained on AV-Deepfake1M", "avad"),
            TableRow("SpeechForensics", "speech_forensics"),
            TableRow("FACTOR, audio-visual", "factor"),
            TableRow("AVH-Align, trained on AV-Deepfake1M", "avh_align-mlp"),
            TableRow("clip length (audit)", "clip_length"),
        ),
    ),
    PaperTable(
        "Table 4: ablations of AVH-Align",
        (
            TableRow("as it is", "avh_align-mlp"),
            TableRow("features not normalised", "avh_align-not-normalised"),
            *(TableRow(f"{share:.0%} of the training clips", f"avh_align-{share:.0%}") for share in TRAINING_SHARES),
            *(TableRow(f"pooling: {name}", "avh_align-mlp", name) for name in POOLINGS),
        ),
    ),
    PaperTable(
        "Table 5: heads",
        (
            TableRow("AVH-Align/sup, MLP", "avh_sup-av_deepfake1m"),
            TableRow("AVH-Align/sup, linear", "avh_sup-linear"),
            TableRow("AVH-Align, MLP", "avh_align-mlp"),
            TableRow("AVH-Align, linear", "avh_align-linear"),
        ),
    ),
)


def format_tables(results: Sequence[Result]) -> str:
    """Formats the tables: AUC in %, untrimmed -> trimmed, with the published numbers where there are any."""
    headings = []
    for name in TEST_DATASETS.values():
        titles = [result.dataset for result in results if _unmarked(result.dataset) == name]
        headings.append(f"{max(titles, key=len, default=name)}: ours (paper's)")
    texts = []
    for table in PAPER_TABLES:
        lines = [[f"{table.title} (AUC %)", *headings]]
        for row in table.rows:
            published = table.published if row.pooling is None else {}
            cells = [_cell(row, dataset, results, published) for dataset in TEST_DATASETS]
            if any(cells):
                lines.append([row.title, *cells])
        texts.append(format_table(lines))
    return "\n\n".join(texts)


def _unmarked(title: str) -> str:
    """Returns a data set's name without its mark, such as " (SIMULATED)"."""
    return title.partition(" (")[0]


def _cell(row: TableRow, dataset: str, results: Sequence[Result], published: Published) -> str:
    ours = [_auc(row, TEST_DATASETS[dataset], variant, results) for variant in (Variant.UNTRIMMED, Variant.TRIMMED)]
    if all(auc is None for auc in ours):
        return ""
    theirs = published.get((row.experiment, dataset))
    return _arrow(auc and 100 * auc for auc in ours) + (f" ({_arrow(theirs)})" if theirs else "")


def _auc(row: TableRow, dataset: str, variant: Variant, results: Sequence[Result]) -> float | None:
    wanted = row.experiment, dataset, variant is Variant.TRIMMED, "all"
    for result in results:
        pooled = result.own if row.pooling is None else result.pooling == row.pooling
        if pooled and (result.method, _unmarked(result.dataset), result.trimmed, result.group) == wanted:
            return result.metrics.auc
    return None


def _arrow(values: Iterable[float | None]) -> str:
    return " -> ".join("-" if value is None else f"{value:.1f}" for value in values)
