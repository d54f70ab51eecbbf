"""Reproduces the paper's tables: runs all missing trainings and scorings, evaluates the scores, prints the tables."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from avh_shards import UserError
from avh_shards.clip import REAL
from avh_shards.format import Variant, caveat, results_folder
from avh_shards.paths import AnyPath, FilePath, as_path, check_outputs, locked
from avh_shards.text import format_table
from jax_avh.config import RESULT, Config, check_config
from jax_avh.configs import make_config
from jax_avh.data.source import Source, open_source
from jax_avh.evaluation import POOLINGS, evaluate
from jax_avh.evaluation.results import Result
from jax_avh.inference import load_detector, score_shards
from jax_avh.methods import METHODS, TrainableMethod
from jax_avh.report.results import FILES, write_evaluation
from jax_avh.scores import open_scores
from jax_avh.training import train

TEST_DATASETS = {"fakeavceleb": "FakeAVCeleb", "av_deepfake1m": "AV-Deepfake1M"}  # folder -> name, in the tables' order
TRAINING_SHARES = (0.1, 0.5)  # shares of the real training clips, for the ablation of the training set's size
MAIN = "av_deepfake1m"  # data set that AVH-Align is trained on
SUPERVISED = {"avh_sup": False, "rawnet2": True, "mds": True}  # method -> whether only tested on its training data set
UNTRAINED = ("leading_silence", "leading_amplitude", "speech_forensics", "factor", "clip_length")
TRAINED_IN = Variant.UNTRIMMED
EVERY = "config"  # owner of settings for all trainings; other owners are methods and experiments
SIZES = ("method.image", "method.width_multiplier", "method.samples")  # may be reduced for a small corpus
TABLES_FILE = "tables.txt"  # in the output folder
RUNS = "runs"  # in the output folder
TABLES_KIND = b"Table "  # start of the tables file


# --- the plan: methods, their training sets and their test sets ------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A method with its training and its test data sets: a row of the tables."""

    name: str  # name of its workdir and score files
    method: str
    trained_on: str = ""  # folder of a data set; "" = not trained
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # fields of its training's configuration
    sync: str = ""  # earlier experiment whose weights it reads
    within: bool = False  # whether it is only tested on its training data set, as in the paper


def experiments(root: FilePath) -> list[Experiment]:
    """Plans all experiments that the training sets below a root allow; reports examine the first one most closely.

    Raises:
      UserError: the root has no training sets.
    """
    there = [dataset for dataset in TEST_DATASETS if (root / dataset / TRAINED_IN.value / "train").is_dir()]
    if not there:
        layout = f"{'|'.join(TEST_DATASETS)}/{'|'.join(variant.value for variant in Variant)}/{{train,val,test}}"
        raise UserError(f"{root}: no training shards; lay them out as {layout}")
    unsupervised = [
        Experiment("avh_align-mlp", "avh_align", MAIN),
        Experiment("avad", "avad", MAIN, sync="avh_align-mlp"),
    ]
    untrained = [Experiment(method, method) for method in UNTRAINED]
    supervised = [
        Experiment(f"{method}-{dataset}", method, dataset, within=within)
        for method, within in SUPERVISED.items()
        for dataset in there
    ]
    if MAIN not in there:
        return untrained + supervised
    return unsupervised + untrained + supervised + _ablations(root)


def _ablations(root: FilePath) -> list[Experiment]:
    """Plans the ablations of AVH-Align and its supervised counterpart, all on one data set."""
    planned = [
        Experiment("avh_sup-linear", "avh_sup", MAIN, {"method.head": "linear"}),
        Experiment("avh_align-linear", "avh_align", MAIN, {"method.head": "linear"}),
        Experiment("avh_align-not-normalised", "avh_align", MAIN, {"model.normalise": "False"}),
    ]
    real = len(open_source(root / MAIN / TRAINED_IN.value / "train").labelled(REAL).members)
    sizes = {share: {"data.train_clips": str(max(round(share * real), 1))} for share in TRAINING_SHARES}
    return planned + [Experiment(f"avh_align-{share:.0%}", "avh_align", MAIN, size) for share, size in sizes.items()]


def test_sets(root: FilePath) -> list[tuple[str, Variant]]:
    """Returns (data set, variant) of all existing test shards."""
    return [
        (dataset, variant)
        for dataset in TEST_DATASETS
        for variant in Variant
        if (root / dataset / variant.value / "test").is_dir()
    ]


# --- the run ---------------------------------------------------------------------------------------------------------


def paper(root: AnyPath, output: AnyPath, flags: Sequence[str] = ()) -> str:
    """Reproduces the paper's tables from feature shards; a stopped run resumes when it is restarted.

    Args:
      root: folder of the shards: <data set>/<untrimmed, trimmed>/<train, val, test>.
      output: folder for `runs/`, `scores/`, `metrics.json`, `clips.csv`, `report.html` and `tables.txt`.
      flags: `--config.FIELD=VALUE` for all trainings, `--METHOD.FIELD=VALUE` for a method's trainings, or
        `--NAME.FIELD=VALUE` for the training of that name in `runs/`. More specific flags take precedence.

    Returns:
      The tables.

    Raises:
      UserError: the shards are missing, a setting is invalid, a training or scoring fails, or another run is writing
        to the output folder.
    """
    shards = as_path(root)
    folder = cast(Path, results_folder(output))  # a UPath serves as well
    check_outputs({folder / name: kind for name, kind in (FILES | {TABLES_FILE: TABLES_KIND}).items()})
    sets = test_sets(shards)
    planned = experiments(shards)
    if not sets:
        raise UserError(f"{root}: no test shards; lay them out as <data set>/<untrimmed, trimmed>/test")
    configs = _configs(shards, folder, planned, flags)
    with locked(folder):
        names, files, skipped = [], [], []
        sources = {where: open_source(shards / where[0] / where[1].value / "test") for where in sets}
        for experiment in planned:
            config = configs.get(experiment.name)
            if config and (lacks := _lacks(experiment, *map(open_source, (config.data.train, config.data.val)))):
                skipped.append(f"{experiment.name}: its training shards hold no {lacks}")
                continue
            weights = _trained(experiment, config, folder / RUNS / experiment.name)
            for (dataset, variant), source in sources.items():
                if experiment.within and dataset != experiment.trained_on:
                    continue
                if lacks := _lacks(experiment, source):
                    skipped.append(f"{experiment.name} on {dataset}, {variant.value}: its shards hold no {lacks}")
                    continue
                file = folder / "scores" / f"{experiment.name},{dataset},{variant.value}.h5"
                notes = {"dataset": TEST_DATASETS[dataset], "trimmed": variant is Variant.TRIMMED}
                _score(experiment, weights, source, file, notes)
                names.append(experiment.name)
                files.append(file)
        evaluation = evaluate(files, names=names)
        note = caveat(*(scored.table.attributes for scored in evaluation.scored_sets))
        text = "\n".join([format_tables(evaluation.metrics.results), *([note] if note else []), *skipped])
        write_evaluation(evaluation, folder, {TABLES_FILE: text + "\n"})
    return text


def _configs(root: FilePath, output: Path, planned: Sequence[Experiment], flags: Sequence[str]) -> dict[str, Config]:
    """Returns the checked configuration of every training."""
    given = {name: {} for experiment in planned for name in (EVERY, experiment.method, experiment.name)}
    for flag in flags:
        setting, equals, value = flag.removeprefix("--").partition("=")
        owner, _, field = setting.partition(".")
        if owner not in given or not equals:
            raise UserError(
                f"{flag}: is invalid; give --NAME.FIELD=VALUE, where NAME is {EVERY}, a method or a run in {RUNS}/"
            )
        if field in ("data.train", "data.val") or (field.startswith("method") and field not in SIZES):
            raise UserError(f"{flag}: cannot be set; the tables determine this field")
        given[owner][field] = value
    configs = {}
    for experiment in planned:
        if experiment.trained_on:
            folder = root / experiment.trained_on / TRAINED_IN.value
            fixed = {"method": experiment.method, "data.train": str(folder / "train"), "data.val": str(folder / "val")}
            fixed |= {"method.sync_weights": str(output / RUNS / experiment.sync)} if experiment.sync else {}
            chosen = given[EVERY] | given[experiment.method] | given[experiment.name] | experiment.settings
            configs[experiment.name] = make_config(chosen | fixed)
            check_config(configs[experiment.name])
    return configs


def _trained(experiment: Experiment, config: Config | None, workdir: Path) -> Path | None:
    """Runs an experiment's training unless it has ended; returns its workdir, or None if it is not trained."""
    if config is None:
        return None
    print(f"\n=== {experiment.name}, trained on {experiment.trained_on}", flush=True)
    train(cast(TrainableMethod, METHODS[experiment.method]), config, workdir)
    if not (workdir / RESULT).is_file():
        raise UserError(f"{workdir}: training stopped before its end; run the same command to resume")
    return workdir


def _lacks(experiment: Experiment, *sources: Source) -> str | None:
    """Returns an optional content that the method needs and the shards lack; None if they lack nothing."""
    reads = METHODS[experiment.method].reads
    return next((content for content in reads if not all(source.has(content) for source in sources)), None)


def _score(experiment: Experiment, weights: Path | None, source: Source, file: Path, notes: dict) -> None:
    """Writes a score file unless one of the same clips and weights exists."""
    wanted = {"fingerprint": source.fingerprint()} | (load_detector(weights).attributes if weights else {})
    if file.is_file():
        if wanted.items() <= open_scores(file).attributes.items():
            return
        file.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    score_shards(str(source.path), file, experiment.method, weights, notes)
    print(file, flush=True)


# --- the tables: reproduced numbers next to the published ones -------------------------------------------------------

# (experiment, data set) -> published AUC in %, untrimmed and trimmed.
Published = Mapping[tuple[str, str], tuple[float, float]]
# Table 1 as on the poster, and table 2. Their clips differ; in table 1, supervised methods were trained and tested
# within a data set.
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
    """A row of a table: the AUC of an experiment."""

    title: str
    experiment: str  # name of the experiment
    pooling: str | None = None  # None = the method's own


class PaperTable(NamedTuple):
    """A table of the paper."""

    title: str
    rows: tuple[TableRow, ...]
    published: Published = PUBLISHED


PAPER_TABLES = (
    PaperTable(
        "Table 1: silence, and supervised methods against an unsupervised one",
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
            TableRow("unchanged", "avh_align-mlp"),
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
    """Formats the tables: AUC in %, untrimmed -> trimmed, followed by any published numbers in parentheses."""
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
