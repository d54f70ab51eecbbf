"""Runs the plan: trains what is not trained, scores what is not scored, evaluates all, prints the tables."""

import os
from collections.abc import Sequence
from pathlib import Path

from apps.paper.plan import DATASETS, STATES, TRAINED_IN, Detector, detectors, test_sets
from apps.paper.tables import format_tables
from avh_shards import UserError, as_path, caveat, check_outputs, locked, results_folder
from jax_avh.config import RESULT, Config, check_config
from jax_avh.configs import make_config
from jax_avh.data import FeatureSource, open_source
from jax_avh.evaluation import evaluate
from jax_avh.inference.detector import load_detector
from jax_avh.inference.score import score_shards
from jax_avh.inference.score_file import open_scores
from jax_avh.methods import METHODS
from jax_avh.report.results import FILES, write_evaluation
from jax_avh.training import train

EVERY = "config"  # of settings: for all trainings; otherwise a method's, or a detector's own
SIZES = ("method.image", "method.width_multiplier", "method.samples")  # a small corpus may want less
TABLES, RUNS = "tables.txt", "runs"  # in the output's folder
TABLES_KIND = b"Table "  # how the tables begin


def paper(root: str | os.PathLike, output: str | os.PathLike, flags: Sequence[str] = ()) -> str:
    """Makes the paper's tables from feature shards; a stopped run, started again, goes on.

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
    root, output = as_path(root), results_folder(output)
    check_outputs({output / name: kind for name, kind in (FILES | {TABLES: TABLES_KIND}).items()})
    sets, planned = test_sets(root), detectors(root)
    if not sets:
        raise UserError(f"{root}: no test shards; lay them out as <data set>/<untrimmed, trimmed>/test")
    configs = _configs(root, output, planned, flags)
    with locked(output):
        scored, skipped = [], []
        sources = {where: open_source(root.joinpath(*where, "test")) for where in sets}
        for detector in planned:
            config = configs.get(detector.name)
            reads = METHODS[detector.method].needs
            if (
                config
                and reads
                and (lacks := _lacks(detector, *map(open_source, (config.data.train, config.data.val))))
            ):
                skipped.append(f"{detector.name}: the shards to train on hold no {lacks}")
                continue
            weights = _trained(detector, config, output / RUNS / detector.name)
            for (dataset, state), source in sources.items():
                if detector.within and dataset != detector.trained_on:
                    continue
                if lacks := _lacks(detector, source):
                    skipped.append(f"{detector.name} on {dataset}, {state}: its shards hold no {lacks}")
                    continue
                file = output / "scores" / f"{detector.name},{dataset},{state}.h5"
                _score(detector, weights, source, file, dataset, state)
                scored.append((detector.name, file))
        names, files = zip(*scored, strict=True)
        evaluation = evaluate(files, names=names)
        note = caveat(*(entry.table.attributes for entry in evaluation.entries))
        text = "\n".join([format_tables(evaluation.metrics["results"]), *([note] if note else []), *skipped])
        write_evaluation(evaluation, output, {TABLES: text + "\n"})
    return text


def _configs(root: Path, output: Path, planned: Sequence[Detector], flags: Sequence[str]) -> dict[str, Config]:
    """Configuration of every training, checked before the first one starts."""
    given = {name: {} for detector in planned for name in (EVERY, detector.method, detector.name)}
    for flag in flags:
        setting, equals, value = flag.removeprefix("--").partition("=")
        owner, _, field = setting.partition(".")
        if owner not in given or not equals:
            raise UserError(f"{flag}: give --NAME.FIELD=VALUE, NAME being {EVERY}, a method or one of runs/")
        if field in ("data.train", "data.val") or (field.startswith("method") and field not in SIZES):
            raise UserError(f"{flag}: is what the tables are about; it cannot be set")
        given[owner][field] = value
    configs = {}
    for detector in planned:
        if detector.trained_on:
            folder = root / detector.trained_on / TRAINED_IN
            fixed = {"method": detector.method, "data.train": str(folder / "train"), "data.val": str(folder / "val")}
            fixed |= {"method.sync_weights": str(output / RUNS / detector.sync)} if detector.sync else {}
            chosen = given[EVERY] | given[detector.method] | given[detector.name] | detector.settings
            configs[detector.name] = make_config(chosen | fixed)
            check_config(configs[detector.name])
    return configs


def _trained(detector: Detector, config: Config | None, workdir: Path) -> Path | None:
    """The workdir of a detector's training, which is run unless it has ended; None if it does not learn."""
    if config is None:
        return None
    print(f"\n=== {detector.name}, trained on {detector.trained_on}", flush=True)
    train(config, workdir)
    if not (workdir / RESULT).is_file():
        raise UserError(f"{workdir}: stopped before its end; the same command goes on")
    return workdir


def _lacks(detector: Detector, *sources: FeatureSource) -> str | None:
    """An optional content of the shards that a detector needs and that is not there."""
    needs = METHODS[detector.method].needs
    return next((content for content in needs if not all(source.has(content) for source in sources)), None)


def _score(
    detector: Detector, weights: Path | None, source: FeatureSource, file: Path, dataset: str, state: str
) -> None:
    """Writes a score file, unless there is one of the same clips and weights."""
    wanted = {"fingerprint": source.fingerprint()} | (load_detector(weights).attributes if weights else {})
    if file.is_file():
        if wanted.items() <= open_scores(file).attributes.items():
            return
        file.unlink()
    file.parent.mkdir(parents=True, exist_ok=True)
    notes = {"dataset": DATASETS[dataset], "trimmed": STATES[state]}
    score_shards(source.path, file, detector.method, weights, notes)
    print(file, flush=True)
