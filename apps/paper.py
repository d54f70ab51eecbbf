"""Makes the paper's tables: trains what is not trained, scores what is not scored, evaluates all, prints the tables."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from apps.paper_tables import TEST_DATASETS, TRAINING_SHARES, format_tables
from avh_shards import UserError
from avh_shards.format import Variant, caveat, results_folder
from avh_shards.lock import locked
from avh_shards.paths import AnyPath, FilePath, as_path, check_outputs
from jax_avh.config import RESULT, Config, check_config
from jax_avh.configs import make_config
from jax_avh.data.source import Source, open_source
from jax_avh.evaluation import evaluate
from jax_avh.inference import load_detector, score_shards
from jax_avh.methods import METHODS, TrainableMethod
from jax_avh.report.results import FILES, write_evaluation
from jax_avh.scores import open_scores
from jax_avh.training import train

MAIN = "av_deepfake1m"  # what AVH-Align is trained on
SUPERVISED = {"avh_sup": False, "rawnet2": True, "mds": True}  # method -> whether it is tested only within its set
UNTRAINED = ("leading_silence", "leading_amplitude", "speech_forensics", "factor", "clip_length")
TRAINED_IN = Variant.UNTRIMMED
EVERY = "config"  # owner of settings for all trainings; others are a method or an experiment
SIZES = ("method.image", "method.width_multiplier", "method.samples")  # a small corpus may want less
TABLES_FILE = "tables.txt"  # in the output's folder, as the next
RUNS = "runs"
TABLES_KIND = b"Table "  # how the tables begin


# --- the plan: which methods, trained on what, scored on which sets --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A method, how it is trained, and where it is tested: a row of the tables."""

    name: str  # of its workdir and score files
    method: str
    trained_on: str = ""  # folder of a data set; "" = it is not trained
    settings: dict[str, str] = dataclasses.field(default_factory=dict)  # fields of its training's configuration
    sync: str = ""  # an earlier experiment, whose weights it reads
    within: bool = False  # whether it is tested only on the data set it was trained on, as was published


def experiments(root: FilePath) -> list[Experiment]:
    """Plans all experiments that the training sets below a root allow; reports examine the first most closely.

    Raises:
      UserError: there are none.
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
    """Plans the ablations of AVH-Align and its supervised twin, all on one set."""
    planned = [
        Experiment("avh_sup-linear", "avh_sup", MAIN, {"method.head": "linear"}),
        Experiment("avh_align-linear", "avh_align", MAIN, {"method.head": "linear"}),
        Experiment("avh_align-not-normalised", "avh_align", MAIN, {"model.normalise": "False"}),
    ]
    real = len(open_source(root / MAIN / TRAINED_IN.value / "train").real().members)
    sizes = {share: {"data.train_clips": str(max(round(share * real), 1))} for share in TRAINING_SHARES}
    return planned + [Experiment(f"avh_align-{share:.0%}", "avh_align", MAIN, size) for share, size in sizes.items()]


def test_sets(root: FilePath) -> list[tuple[str, Variant]]:
    """Returns the data set and variant of the test shards that exist."""
    return [
        (dataset, variant)
        for dataset in TEST_DATASETS
        for variant in Variant
        if (root / dataset / variant.value / "test").is_dir()
    ]


# --- the run ---------------------------------------------------------------------------------------------------------


def paper(root: AnyPath, output: AnyPath, flags: Sequence[str] = ()) -> str:
    """Makes the paper's tables from feature shards; a stopped run resumes if it is started again.

    Args:
      root: folder of the shards: <data set>/<untrimmed, trimmed>/<train, val, test>.
      output: gets `runs/`, `scores/`, `metrics.json`, `clips.csv`, `report.html`, `tables.txt`.
      flags: `--config.FIELD=VALUE` for all trainings; `--METHOD.FIELD=VALUE` for those of a method;
        `--NAME.FIELD=VALUE` for the one of that name in `runs/`. The more special one counts.

    Returns:
      The tables.

    Raises:
      UserError: there are no shards, a setting is refused, a training or scoring fails, or another run is
        writing to the output's folder.
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
                skipped.append(f"{experiment.name}: the shards to train on hold no {lacks}")
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
    """Returns the configuration of every training, checked before the first one starts."""
    given = {name: {} for experiment in planned for name in (EVERY, experiment.method, experiment.name)}
    for flag in flags:
        setting, equals, value = flag.removeprefix("--").partition("=")
        owner, _, field = setting.partition(".")
        if owner not in given or not equals:
            raise UserError(f"{flag}: give --NAME.FIELD=VALUE, NAME being {EVERY}, a method or one of runs/")
        if field in ("data.train", "data.val") or (field.startswith("method") and field not in SIZES):
            raise UserError(f"{flag}: is what the tables are about; it cannot be set")
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
    """Returns the workdir of an experiment's training, which is run unless it has ended; None if it is not trained."""
    if config is None:
        return None
    print(f"\n=== {experiment.name}, trained on {experiment.trained_on}", flush=True)
    train(cast(TrainableMethod, METHODS[experiment.method]), config, workdir)
    if not (workdir / RESULT).is_file():
        raise UserError(f"{workdir}: stopped before its end; the same command goes on")
    return workdir


def _lacks(experiment: Experiment, *sources: Source) -> str | None:
    """Returns an optional content that a method needs and shards lack."""
    reads = METHODS[experiment.method].reads
    return next((content for content in reads if not all(source.has(content) for source in sources)), None)


def _score(experiment: Experiment, weights: Path | None, source: Source, file: Path, notes: dict) -> None:
    """Writes a score file, unless there is one of the same clips and weights."""
    wanted = {"fingerprint": source.fingerprint()} | (load_detector(weights).attributes if weights else {})
    if file.is_file():
        if wanted.items() <= open_scores(file).attributes.items():
            return
        file.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    score_shards(str(source.path), file, experiment.method, weights, notes)
    print(file, flush=True)
