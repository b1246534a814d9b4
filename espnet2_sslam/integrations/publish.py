"""A trained model as a folder for others: weights, card, records; and its upload.

The card (card.md.j2) says what the records beside the model say: its config.yaml, the
data report, ESPnet's own record of the training, metrics.json files. A record counts
as one of these weights by its place and if it is not older than they are.
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
)
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

import espnet2_sslam
from espnet2_sslam.checkpoint import load_model, resolve, save_model, weights_file
from espnet2_sslam.integrations.pack import pack_model
from espnet2_sslam.results import read_history
from espnet2_sslam.store import replacing_folder, write_text

TEMPLATE = Path(__file__).with_name("card.md.j2")
CORPORA_FILE = Path(__file__).with_name("corpora.yaml")
CARD_FILE, PACKED_FILE = "README.md", "espnet_model.zip"
METRICS = ("accuracy", "mAP")  # in this order, where they were computed
DATA_OPTION = "train_data_path_and_name_and_type"
REPORT = Path("report") / "report.json"
EXPERIMENT_FILES = ("RESULTS.md", "results/scores.csv")
EPOCH_FILE = re.compile(r"(\d+)epoch\.pth")
# Paths of three parts and more: AudioSet's "/m/09x0r" is a class.
ABSOLUTE = re.compile(r"(?<![\w.~/:])(?:/[^\s/:,;'\"]+){3,}")
LICENSE = re.compile(r"[a-z0-9.+-]+")  # what a word of the Hub's list looks like
# The Hub lists libraries by name; transformers' own code would not find `sslam` without
# the import that the card shows. The second tag is what ESPnet's recipes call the task.
LIBRARY, TASKS = "espnet", {True: "classification", False: "self-supervised-learning"}
MODEL_LINE = re.compile(r'^MODEL = ".*$', re.MULTILINE)


class Score(NamedTuple):
    """What one test split gave."""

    data_set: str  # with its fold where it has folds
    split: str
    how: str  # "linear evaluation", "fine-tuning"; "" if the publisher named the file
    checkpoint: str  # "last", "best" or ""
    metrics: dict[str, Any]  # content of metrics.json
    on_test: bool  # whether the checkpoint was chosen on the test clips themselves
    file: Path  # metrics.json


def write_folder(
    model: str,
    folder: Path,
    *,
    weights: str = "student",
    cache_dir: Path | None = None,
    overwrite: bool = False,
    name: str | None = None,
    license: str | None = None,
    data_license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Iterable[str] = (),
    repo: str | None = None,
    branch: str | None = None,
) -> dict[str, Any]:
    """Write model, packed model, records and card, whole or not at all.

    The same model and records give the same bytes. Returns what the card says, by the
    names that the template uses.

    Args:
        model, weights, cache_dir: See `load_model`.
        folder: Where to; a folder that this function wrote is replaced.
        overwrite: Replace an earlier folder although it was changed by hand.
        name: The model's name; that of `repo` or `folder` by default.
        license: Licence of the weights, in Hugging Face's word.
        data_license: Licence of the data, in words.
        datasets: Names of the data sets; by default what the records say.
        metrics: Scores of a classifier, as SET/SPLIT=metrics.json.
        repo, branch: user/name where the model will be, and the branch.

    Raises:
        ValueError: The folder holds something else, or was changed by hand; scores
            that are not of this model; a licence in other words than the Hub's.
        OSError: It cannot be written; an earlier folder is left as it was.
    """
    if license and not LICENSE.fullmatch(license):
        raise ValueError(
            f"--license {license!r} is not a word of Hugging Face: write it such as "
            "cc-by-4.0, apache-2.0 or other"
        )
    path = resolve(model, cache_dir=cache_dir)
    file = weights_file(path) if path.is_dir() else path
    _check_target(folder, file, overwrite)
    loaded = load_model(file, weights=weights, cache_dir=cache_dir)
    config = _read_config(file.parent) if file.suffix == ".pth" else {}
    origin = config.get("origin") or loaded.config.get("origin") or {}
    scores = [_named_score(text, loaded.classes) for text in metrics]
    training: dict[str, Any] = {}
    records: dict[str, Path] = {}
    if config.get(DATA_OPTION) and origin.get("weights") == "student":
        # records of this very training, which are of the student
        training = _training(file, config)
        scores[:0] = _own_scores(file, config) if loaded.classes else ()
        above = list(file.resolve().parents)[1:5]
        home = next((p for p in above if (p / EXPERIMENT_FILES[0]).is_file()), None)
        files = [home / name for name in EXPERIMENT_FILES] if home else []
        records = {path.name: path for path in files if path.is_file()}
    for score in scores:
        records[f"metrics/{_slug('_'.join(filter(None, score[:4])))}.json"] = score.file
    report: dict[str, Any] = training.get("report") or {}
    sets, notes = report.get("classes", ()), report.get("notes", ())
    corpora = {
        corpus: entry
        for corpus, entry in yaml.safe_load(CORPORA_FILE.read_text("utf-8")).items()
        if entry.get("set") in sets
        or any(note.startswith(entry.get("notes", "\n")) for note in notes)
    }
    known = [entry["dataset"] for entry in corpora.values()]
    facts: dict[str, Any] = {
        "name": name or (repo.split("/")[1] if repo else folder.resolve().name),
        "license": license,
        "data_license": data_license,
        "address": f"{repo}@{branch}" if branch else repo,
        "encoder": loaded.encoder.config,
        "head": loaded.model.config if loaded.classes else None,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "origin": origin,
        "training": training,
        "report": report,
        "corpora": corpora,
        "datasets": list(datasets) or known or sorted(sets),
        "scores": scores,
        "records": list(records),
        "version": espnet2_sslam.__version__,
    }
    with replacing_folder(folder) as partial:
        save_model(loaded.model, partial, origin)
        pack_model(loaded.model, partial / PACKED_FILE, timestamp=False)
        if training:
            text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
            write_text(partial / "config.yaml", _without_machine(text))
        for record, source in records.items():
            text = source.read_text(encoding="utf-8")
            write_text(partial / record, _without_machine(text))
        card = ModelCard.from_template(
            _metadata(facts), template_path=str(TEMPLATE), facts=facts
        )
        write_text(partial / CARD_FILE, _without_machine(str(card).rstrip()) + "\n")
        now = time.time()
        for path in partial.rglob("*"):  # one time for all shows what changes later
            os.utime(path, (now, now))
    return facts


def _check_target(folder: Path, file: Path, overwrite: bool) -> None:
    """Refuse to replace what somebody may want to keep."""
    if folder.resolve() in (file.resolve().parent, Path.cwd()):
        raise ValueError(f"--output {folder} is the model's own folder: name another")
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file: name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    check_folder(folder)
    written = (folder / PACKED_FILE).stat().st_mtime
    changed = [p.name for p in folder.rglob("*") if p.stat().st_mtime != written]
    if changed and not overwrite:
        raise ValueError(
            f"{folder} was changed by hand ({', '.join(sorted(changed))}): upload it "
            f"as it is with `sslam publish {folder} --hf_repo user/name`, or replace "
            "it with --overwrite"
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError unless a folder was written by `write_folder`."""
    for name in CARD_FILE, PACKED_FILE:
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} was not written by `sslam publish`: it has no {name}"
            )


# --- the records of trainings


def _read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.yaml; empty without one."""
    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _find(path: str, run: Path) -> Path | None:
    """A file that a run's config.yaml names, from the folder it was started in."""
    bases = (base / path for base in (Path(), *run.resolve().parents))
    return next((candidate for candidate in bases if candidate.exists()), None)


def _training(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What is known of the training that wrote a file of weights."""
    starts = [option.split(":")[0] for option in config.get("init_param") or ()]
    before = _find(starts[0], file.parent) if starts else None
    origin = _read_config(before.parent).get("origin") if before else None
    return {
        "kind": _kind(config),
        "seed": config.get("seed"),
        "start": origin["file"] if origin else "".join(starts[:1]),
        **_duration(file),
        **_data(file, config),
    }


def _kind(config: dict[str, Any]) -> str:
    """What a training is called."""
    model = config.get("model_conf") or {}
    if "class_list" in config:
        return "linear evaluation" if model.get("freeze_encoder") else "fine-tuning"
    return "phase 2" if model.get("mixture") else "phase 1"


def _duration(file: Path) -> dict[str, Any]:
    """Epoch, updates and wall hours (with validation) up to a file of weights."""
    try:
        history = read_history(file.parent)
    except (OSError, ValueError):
        return {}
    name = EPOCH_FILE.fullmatch(file.resolve().name)
    epoch = int(name[1]) if name else 0  # an average over epochs has none
    if not 1 <= epoch <= history.epochs:
        return {}
    stats = {number: history.stats[number] for number in range(1, epoch + 1)}
    past = dataclasses.replace(history, stats=stats)
    return {"epoch": epoch, "updates": past.updates, "wall_hours": past.hours}


def _data(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Split, clips and hours of a training's list, from the data report above it."""
    path = _find(config[DATA_OPTION][0][0], file.parent)
    # A list that is newer than the weights is not what they were trained on.
    if path is not None and path.stat().st_mtime <= file.stat().st_mtime:
        for dump in list(path.resolve().parents)[1:5]:
            if (dump / REPORT).is_file():
                report = json.loads((dump / REPORT).read_text(encoding="utf-8"))
                split = path.resolve().parent.relative_to(dump).as_posix()
                if content := report["splits"].get(split):
                    clips, hours = content["usable"], content["hours"]
                    numbers = {"clips": clips, "hours": hours}
                    return {"split": split, "report": report, **numbers}
    return {}


# --- scores


def _own_scores(file: Path, config: dict[str, Any]) -> list[Score]:
    """Scores of exactly these weights of a classifier, beside them."""
    run, weights = file.parent, file.resolve()
    links = {"last": [run / "latest.pth"], "best": [*run.glob("*.best.pth")]}
    named = [n for n in links if weights in [link.resolve() for link in links[n]]]
    valid = (config.get("valid_data_path_and_name_and_type") or [[""]])[0][0]
    scores = []
    for checkpoint in named[:1]:
        for path in sorted(run.glob(f"{checkpoint}/*/metrics.json")):
            if path.stat().st_mtime >= weights.stat().st_mtime:  # else of earlier ones
                split, metrics = path.parent.name, _read_metrics(path)
                on_test = checkpoint == "best" and Path(valid).parent.name == split
                how = _kind(config)
                score = Score(run.name, split, how, checkpoint, metrics, on_test, path)
                scores.append(score)
    return scores


def _named_score(text: str, model_classes: Sequence[str] | None) -> Score:
    """A score that the publisher names: SET/SPLIT=metrics.json."""
    name, _, file = text.partition("=")
    data_set, _, split = name.rpartition("/")
    if not file or not data_set:
        raise ValueError(
            "--metrics is SET/SPLIT=metrics.json, such as "
            f"esc50/test=out/metrics.json, not {text!r}"
        )
    metrics = _read_metrics(Path(file))
    if set(metrics["per_class"]) != set(model_classes or ()):
        raise ValueError(
            f"{file} scores {len(metrics['per_class'])} classes, which are not those "
            f"of the model ({len(model_classes or ())}): name scores of this model"
        )
    return Score(data_set, split, "", "", metrics, False, Path(file))


def _read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(metrics["mAP"], float) and metrics["per_class"]:
            return metrics
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not a metrics.json of sslam_score: score again")


# --- card


def _metadata(facts: dict[str, Any]) -> ModelCardData:
    """What Hugging Face reads of a card."""
    task = "audio-classification" if facts["head"] else "feature-extraction"
    known = {name: entry["dataset"] for name, entry in facts["corpora"].items()}
    results = [
        EvalResult(
            task_type="audio-classification",
            task_name=f"audio classification, {score.how}" if score.how else None,
            dataset_type=_slug(known.get(score.data_set, score.data_set)),
            dataset_name=score.data_set,
            dataset_split=score.split,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(score.metrics[metric], 4),
        )
        for score in facts["scores"]
        for metric in METRICS
        if metric in score.metrics and not score.on_test
    ]
    scored = [m for m in METRICS if any(m in s.metrics for s in facts["scores"])]
    return ModelCardData(
        library_name=LIBRARY,
        license=facts["license"] or "unknown",
        pipeline_tag=task,
        tags=[LIBRARY, "audio", TASKS[bool(facts["head"])], "sslam"],
        datasets=[_slug(name) for name in facts["datasets"]] or None,
        metrics=scored or None,
        model_name=facts["name"],
        eval_results=results or None,
    )


def _slug(name: str) -> str:
    """A name as Hugging Face accepts it for a data set."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-_.") or "unknown"


def _without_machine(text: str) -> str:
    """The text with absolute paths shortened to their last three parts."""
    return ABSOLUTE.sub(lambda path: "/".join(["...", *path[0].split("/")[-3:]]), text)


# --- upload


def push(
    folder: Path,
    repo: str,
    *,
    private: bool = False,
    branch: str | None = None,
    overwrite: bool = False,
) -> str:
    """Upload a folder in one commit; afterwards the repository holds its files only.

    Nothing is sent that the repository holds already: neither large files after an
    interruption, nor the same folder again. Returns the model's address.

    Args:
        folder: As `write_folder` has written it; README.md may have been edited and
            files may have been added.
        repo: user/name; made if it is not there.
        private: Make it private.
        branch: Instead of main; made if it is not there.
        overwrite: Replace what is not a model of this function (its history keeps it).

    Raises:
        ValueError: One line on why the Hub does not have the model now.
    """
    check_folder(folder)
    paths = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    names = sorted(p.as_posix() for p in paths if not any(x[0] == "." for x in p.parts))
    added = {name: CommitOperationAdd(name, folder / name) for name in names}
    # The card names the model as it is found there.
    line = f'MODEL = "{repo}@{branch}"' if branch else f'MODEL = "{repo}"'
    card = (folder / CARD_FILE).read_text(encoding="utf-8")
    content = MODEL_LINE.sub(lambda _: line, card, count=1).encode()
    added[CARD_FILE] = CommitOperationAdd(CARD_FILE, content)
    try:
        api = HfApi(token=True)  # an error without one
        if not api.repo_exists(repo):
            api.create_repo(repo, private=private or None, exist_ok=True)
        elif private and not api.model_info(repo).private:
            raise ValueError("it is there and public: make it private on its page")
        main = api.model_info(repo).sha
        if branch and branch != "main":
            api.create_branch(repo, branch=branch, exist_ok=True)
        info = api.model_info(repo, revision=branch)
        remote = {s.rfilename for s in info.siblings or ()} - {".gitattributes"}
        is_ours = PACKED_FILE in remote or (branch and info.sha == main)
        if remote and not is_ours and not overwrite:
            raise ValueError(
                f"it is there and holds other files ({', '.join(sorted(remote))}): "
                "--overwrite replaces them (its history keeps them)"
            )
        deleted = map(CommitOperationDelete, sorted(remote - added.keys()))
        # Not upload_folder: several commits, and somebody loads between them.
        api.create_commit(
            repo,
            [*added.values(), *deleted],
            commit_message="Publish with espnet2_sslam",
            revision=branch,
            parent_commit=info.sha,
        )
        return f"{api.endpoint}/{repo}" + (f"/tree/{branch}" if branch else "")
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        # "Error while uploading ..." hides the cause
        cause = error.__cause__ if isinstance(error, RuntimeError) else None
        reason = " ".join(str(cause or error).split()) or type(error).__name__
        raise ValueError(
            f"{repo}: {reason}. {folder} is kept: go on with "
            f"`sslam publish {folder} --hf_repo {repo}`"
        ) from error
