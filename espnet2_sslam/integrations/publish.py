"""A trained model as a folder for others: weights, card, records; and its upload.

The card (card.md.j2) says what the records beside the model say: its config.yaml, the
data report, ESPnet's own record of the training, metrics.json files. A record counts
as one of these weights by its place and if it is not older than they are.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
    constants,
    errors,
    get_token,
)
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash

import espnet2_sslam
from espnet2_sslam.checkpoint import (
    Loaded,
    load_model,
    resolve,
    save_model,
    weights_file,
)
from espnet2_sslam.integrations.pack import pack_model
from espnet2_sslam.results import read_history
from espnet2_sslam.store import replacing_folder, sha256, write_text

TEMPLATE = Path(__file__).with_name("card.md.j2")
CORPORA_FILE = Path(__file__).with_name("corpora.yaml")
CARD_FILE, CHECKSUMS_FILE = "README.md", "checksums.txt"
PACKED_FILE = "espnet_model.zip"
METRICS = ("accuracy", "mAP")  # in this order, where they were computed
DATA_OPTION = "train_data_path_and_name_and_type"
REPORT = Path("report") / "report.json"
EXPERIMENT_FILES = ("RESULTS.md", "results/scores.csv")
SNAPSHOT = re.compile(r"models--(.+?)--(.+)/snapshots/[0-9a-f]{40}(?:/|$)")
EPOCH_FILE = re.compile(r"(\d+)epoch\.pth")
# Paths of three parts and more: AudioSet's "/m/09x0r" is a class.
ABSOLUTE = re.compile(r"(?<![\w.~/:])(?:/[^\s/:,;'\"]+){3,}")
MODEL_LINE = re.compile(r'^MODEL = ".*$', re.MULTILINE)
CHECKSUM = re.compile(r"([0-9a-f]{64})  (\S.*)")
OWN_FILE = ".gitattributes"  # the Hub makes it itself


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
    results: Iterable[Path] = (),
    repo: str | None = None,
    branch: str | None = None,
) -> dict[str, Any]:
    """Write model, packed model, records, card and hashes, whole or not at all.

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
        results: Experiments or runs with scores beside the model's own place.
        repo, branch: user/name where the model will be, and the branch.

    Raises:
        ValueError: The folder holds something else, or was changed by hand; scores
            that are not of this model.
        OSError: It cannot be written; an earlier folder is left as it was.
    """
    path = resolve(model, cache_dir=cache_dir)
    file = weights_file(path) if path.is_dir() else path
    _check_target(folder, file, overwrite)
    loaded = load_model(file, weights=weights, cache_dir=cache_dir)
    config = _read_config(file.parent) if file.suffix == ".pth" else {}
    origin = config.get("origin") or loaded.config.get("origin") or {}
    # The records are of the student.
    own = bool(config.get(DATA_OPTION)) and origin.get("weights") == "student"
    trainings = list(_trainings(file))[::-1] if own else []
    scores, experiment_files = _own_scores(loaded, file, results, own)
    scores += [_named_score(text, loaded) for text in metrics]
    reports: list[dict] = []  # of the data of all trainings, mostly one
    for training in trainings:
        if training["report"] and training["report"] not in reports:
            reports.append(training["report"])
    sets = {name for report in reports for name in report["classes"]}
    corpora = _corpora(reports, sets)
    known = [entry["dataset"] for entry in corpora.values()]
    snapshot = SNAPSHOT.search(str(path))
    facts: dict[str, Any] = {
        "name": name or (repo.split("/")[1] if repo else folder.resolve().name),
        "license": license,
        "data_license": data_license,
        "address": f"{repo}@{branch}" if branch else repo,
        "encoder": loaded.encoder.config,
        "head": loaded.model.config if loaded.classes else None,
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "base_model": f"{snapshot[1]}/{snapshot[2]}" if snapshot else None,
        "origin": origin,
        "trainings": trainings,
        "reports": reports,
        "corpora": corpora,
        "datasets": list(datasets) or known or sorted(sets),
        "scores": scores,
        "version": espnet2_sslam.__version__,
    }
    with replacing_folder(folder) as partial:
        save_model(loaded.model, partial, origin)
        pack_model(loaded.model, partial / PACKED_FILE, timestamp=False)
        for number, training in enumerate(reversed(trainings)):
            kind = "" if number == 0 else f"_{training['kind'].replace(' ', '')}"
            if (partial / f"config{kind}.yaml").exists():  # two of one kind in a row
                kind += f"_{number}"
            training["file"] = f"config{kind}.yaml"
            content = training["config"]
            text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
            write_text(partial / training["file"], _without_machine(text))
        records = {path.name: path for path in experiment_files}
        for score in scores:
            stem = _slug("_".join(filter(None, score[:4])))
            records[f"metrics/{stem}.json"] = score.file
        for record, source in records.items():
            text = source.read_text(encoding="utf-8")
            write_text(partial / record, _without_machine(text))
        facts["records"] = list(records)
        card = ModelCard.from_template(
            _metadata(facts), template_path=str(TEMPLATE), facts=facts
        )
        write_text(partial / CARD_FILE, _without_machine(str(card).rstrip()) + "\n")
        write_text(partial / CHECKSUMS_FILE, _checksums(_hashes(partial)))
    return facts


def _check_target(folder: Path, file: Path, overwrite: bool) -> None:
    """Refuse to replace what somebody may want to keep."""
    if folder.resolve() in (file.resolve().parent, Path.cwd()):
        raise ValueError(f"--output {folder} is the model's own folder: name another")
    if folder.is_file():
        raise ValueError(f"--output {folder} is a file: name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    changes = set(read_checksums(folder).items()) ^ set(_hashes(folder).items())
    if changes and not overwrite:
        raise ValueError(
            f"{folder} was changed by hand ({', '.join(sorted(dict(changes)))}): "
            f"upload it as it is with `sslam publish {folder} --hf_repo user/name`, or "
            "replace it with --overwrite"
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


def _starts(config: dict[str, Any], run: Path) -> list[tuple[str, Path | None]]:
    """The weights that a training began with: the name in its config, and the file."""
    names = [text.split(":")[0] for text in config.get("init_param") or []]
    return [(name, _find(name, run)) for name in names]


def _kind(config: dict[str, Any]) -> str:
    """What a training is called."""
    model = config.get("model_conf") or {}
    if "class_list" in config:
        return "linear evaluation" if model.get("freeze_encoder") else "fine-tuning"
    return "phase 2" if model.get("mixture") else "phase 1"


def _trainings(file: Path | None) -> Iterator[dict[str, Any]]:
    """The trainings that led to a file of weights, the last one first."""
    seen: set[Path] = set()
    while file is not None and file.resolve() not in seen:
        seen.add(file.resolve())
        config = _read_config(file.parent)
        if not config.get(DATA_OPTION):  # weights from elsewhere
            return
        written = file.stat().st_mtime
        starts = _starts(config, file.parent)
        # A later file of the same name is another one.
        older = (p for _, p in starts if p and p.stat().st_mtime <= written)
        before = next(older, None)
        origin = _read_config(before.parent).get("origin") if before else None
        yield {
            "kind": _kind(config),
            "config": config,
            "start": origin["file"] if origin else starts[0][0] if starts else None,
            **_duration(file),
            **_data(config, file.parent, written),
        }
        file = before


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


def _data(config: dict[str, Any], run: Path, written: float) -> dict[str, Any]:
    """Split, clips and hours of a training's list, from the data report above it."""
    path = _find(config[DATA_OPTION][0][0], run)
    if path is not None and path.stat().st_mtime <= written:
        for dump in list(path.resolve().parents)[1:5]:
            if (dump / REPORT).is_file():
                report = json.loads((dump / REPORT).read_text(encoding="utf-8"))
                split = path.resolve().parent.relative_to(dump).as_posix()
                if content := report["splits"].get(split):
                    clips, hours = content["usable"], content["hours"]
                    numbers = {"clips": clips, "hours": hours}
                    return {"split": split, "report": report, **numbers}
    return {"split": None, "report": None}


def _corpora(reports: Iterable[dict], sets: set[str]) -> dict[str, dict[str, Any]]:
    """The entries of corpora.yaml that the data reports speak of."""
    notes = [note for report in reports for note in report["notes"]]
    return {
        name: entry
        for name, entry in yaml.safe_load(CORPORA_FILE.read_text("utf-8")).items()
        if entry.get("set") in sets
        or any(note.startswith(entry.get("notes", "\n")) for note in notes)
    }


# --- scores


def _own_scores(
    loaded: Loaded, file: Path, results: Iterable[Path], own: bool
) -> tuple[list[Score], list[Path]]:
    """Scores of exactly these weights, and the files of their experiment."""
    folders = [path.parent if path.is_file() else path for path in results]
    for path in folders:
        if not path.exists():
            raise ValueError(f"--results {path}: there is no such file or folder")
    if not own and folders:
        raise ValueError(
            "--results are of a training's own weights: these are others; name files "
            "of scores with --metrics"
        )
    if not own:
        return [], []
    above = list(file.resolve().parents)[1:5]
    home = next((p for p in above if (p / EXPERIMENT_FILES[0]).is_file()), None)
    default = file.parent if loaded.classes else home
    by_file = {}
    for folder in filter(None, (default, *folders)):
        scores = list(_scores_below(folder, file, bool(loaded.classes)))
        if not scores and folder in folders:
            raise ValueError(
                f"{folder} holds no scores of {file}: score these weights, or leave "
                "--results out"
            )
        by_file.update({score.file.resolve(): score for score in scores})
    paths = [p / name for p in (home, *folders) if p for name in EXPERIMENT_FILES]
    by_name = {path.name: path for path in reversed(paths) if path.is_file()}
    scores = sorted(by_file.values(), key=lambda score: score[:4])
    return scores, [by_name[name] for name in sorted(by_name)]


def _scores_below(folder: Path, file: Path, is_classifier: bool) -> Iterator[Score]:
    """Scores of a classifier's weights, or of what was trained from an encoder's."""
    for run in sorted(path.parent for path in folder.rglob("config.yaml")):
        weights, config = file, _read_config(run)
        latest = run / "latest.pth"
        if not is_classifier:
            begun = [p.resolve() for _, p in _starts(config, run) if p is not None]
            weights = latest
            if file.resolve() not in begun or not weights.exists():
                continue
            if weights.stat().st_mtime < file.stat().st_mtime:
                continue  # begun from weights that are not there any more
        links = {"last": [latest], "best": run.glob("*.best.pth")}
        targets = {name: [p.resolve() for p in links[name]] for name in links}
        named = [name for name in targets if weights.resolve() in targets[name]]
        valid = (config.get("valid_data_path_and_name_and_type") or [[""]])[0][0]
        for name in named[:1]:
            for metrics_file in sorted(run.glob(f"{name}/*/metrics.json")):
                if metrics_file.stat().st_mtime < weights.stat().st_mtime:
                    continue  # scores of earlier weights
                split = metrics_file.parent.name
                on_test = name == "best" and Path(valid).parent.name == split
                how, metrics = _kind(config), _read_metrics(metrics_file)
                yield Score(run.name, split, how, name, metrics, on_test, metrics_file)


def _named_score(text: str, loaded: Loaded) -> Score:
    """A score that the publisher names: SET/SPLIT=metrics.json."""
    name, _, file = text.partition("=")
    data_set, _, split = name.rpartition("/")
    if not file or "/" not in name:
        raise ValueError(
            "--metrics is SET/SPLIT=metrics.json, such as "
            f"esc50/test=out/metrics.json, not {text!r}"
        )
    metrics = _read_metrics(Path(file))
    classes = metrics.get("per_class", {})
    if set(classes) != set(loaded.classes or ()) or not classes:
        raise ValueError(
            f"{file} scores {len(classes)} classes, which are not those of the model "
            f"({len(loaded.classes or ())}): name scores of this model"
        )
    return Score(data_set, split, "", "", metrics, False, Path(file))


def _read_metrics(path: Path) -> dict[str, Any]:
    """The content of a metrics.json."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(metrics["mAP"], float) and metrics["num_clips"] > 0:
            return metrics
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is not a metrics.json of sslam_score: score again")


# --- card and hashes


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
        library_name="espnet2_sslam",
        license=facts["license"] or "unknown",
        pipeline_tag=task,
        tags=["espnet", "sslam", "audio", task],
        datasets=[_slug(name) for name in facts["datasets"]] or None,
        metrics=scored or None,
        base_model=facts["base_model"],
        model_name=facts["name"],
        eval_results=results or None,
    )


def _slug(name: str) -> str:
    """A name as Hugging Face accepts it for a data set."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-_.") or "unknown"


def _without_machine(text: str) -> str:
    """The text with absolute paths shortened to their last three parts."""
    return ABSOLUTE.sub(lambda path: "/".join(["...", *path[0].split("/")[-3:]]), text)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of all files but checksums.txt and hidden ones, by sorted names."""
    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    shown = (p.as_posix() for p in names if not any(x[0] == "." for x in p.parts))
    return {n: sha256(folder / n) for n in sorted(shown) if n != CHECKSUMS_FILE}


def _checksums(hashes: dict[str, str]) -> str:
    """The content of checksums.txt, as `sha256sum` writes and checks it."""
    return "".join(f"{digest}  {name}\n" for name, digest in hashes.items())


def read_checksums(folder: Path) -> dict[str, str]:
    """The content of checksums.txt.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = folder / CHECKSUMS_FILE
    if not path.is_file() or not (folder / CARD_FILE).is_file():
        raise ValueError(
            f"{folder} was not written by `sslam publish`: it lacks {CARD_FILE} or "
            f"{CHECKSUMS_FILE}"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    matches = [CHECKSUM.fullmatch(line) for line in lines]
    if not matches or None in matches:
        raise ValueError(f"{path} is damaged: write the folder again")
    return {match[2]: match[1] for match in matches if match}


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

    Large files that have arrived are not sent again after an interruption. Nothing is
    done where the repository holds the same files already. Returns the model's address.

    Args:
        folder: As `write_folder` has written it.
        repo: user/name; made if it is not there.
        private: Make it private.
        branch: Instead of main; made if it is not there.
        overwrite: Replace other files that are there (its history keeps them).

    Raises:
        ValueError: One line on why the Hub does not have the model now.
    """
    files = _to_upload(folder, f"{repo}@{branch}" if branch else repo)
    try:
        return _push(files, repo, private, branch, overwrite)
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{repo}: {' '.join(_reason(error).split())}. {folder} is kept: go on with "
            f"`sslam publish {folder} --hf_repo {repo}`"
        ) from error


def _to_upload(folder: Path, address: str) -> dict[str, Path | bytes]:
    """Files of a folder, or their content where the upload changes it.

    README.md may have been edited and files may have been added; the model itself must
    be as it was written. The card names the model as it is found there.

    Raises:
        ValueError: Not a folder of ours; files that are missing or changed.
    """
    written, hashes = read_checksums(folder), _hashes(folder)
    wrong = [
        f"{name} {'changed' if name in hashes else 'missing'}"
        for name in sorted(written)
        if name != CARD_FILE and hashes.get(name) != written[name]
    ]
    if wrong:
        raise ValueError(
            f"{folder}: {', '.join(wrong)} since it was written: write it again with "
            "`sslam publish MODEL --output`"
        )
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    card = MODEL_LINE.sub(lambda _: f'MODEL = "{address}"', text, count=1).encode()
    hashes[CARD_FILE] = hashlib.sha256(card).hexdigest()
    files: dict[str, Path | bytes] = {name: folder / name for name in hashes}
    return {**files, CARD_FILE: card, CHECKSUMS_FILE: _checksums(hashes).encode()}


def _push(
    files: dict[str, Path | bytes],
    repo: str,
    private: bool,
    branch: str | None,
    overwrite: bool,
) -> str:
    """Make the repository what the folder is."""
    if not get_token():
        raise ValueError("there is no token: `hf auth login`, or HF_TOKEN")
    api = HfApi(token=get_token())
    if not api.repo_exists(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
    elif private and not api.model_info(repo).private:
        raise ValueError(
            f"{repo} is there and public: make it private on its page, or leave "
            "--private out"
        )
    main = api.model_info(repo).sha
    if branch and branch != constants.DEFAULT_REVISION:
        api.create_branch(repo, branch=branch, exist_ok=True)
    info = api.model_info(repo, revision=branch, files_metadata=True)
    remote = {s.rfilename: s for s in info.siblings or [] if s.rfilename != OWN_FILE}
    added = {n: CommitOperationAdd(n, files[n]) for n in sorted(files)}
    url = f"{api.endpoint}/{repo}" + (f"/tree/{branch}" if branch else "")
    if remote.keys() == added.keys() and all(
        _is_same(remote[name], operation) for name, operation in added.items()
    ):
        return url
    is_new_branch = bool(branch) and info.sha == main
    if remote and not overwrite and not is_new_branch:
        names = ", ".join(sorted(remote)[:3])
        raise ValueError(
            f"{repo} is there and holds other files ({names}, ...): --overwrite "
            "replaces them (its history keeps them), or choose another name"
        )
    deleted = [CommitOperationDelete(n) for n in sorted(remote) if n not in added]
    # Not upload_folder: it may make several commits, and somebody loads between them.
    api.create_commit(
        repo,
        [*added.values(), *deleted],
        commit_message="Publish with espnet2_sslam",
        revision=branch,
        parent_commit=info.sha,
    )
    return url


def _is_same(remote: Any, operation: CommitOperationAdd) -> bool:
    """Whether a file of a repository has the content that would be uploaded."""
    if remote.lfs:
        return remote.lfs.sha256 == operation.upload_info.sha256.hex()
    with operation.as_file() as file:
        return remote.blob_id == git_hash(file.read())


ANSWERS = {
    401: "the Hub does not accept the token: `hf auth login` with another",
    403: "this token may not write there: it needs the permission (role write)",
    412: "somebody else changed the repository just now: look at it first",
}


def _reason(error: BaseException) -> str:
    """What the Hub, the network or the disk had to say, in a few words."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__  # "Error while uploading ..." hides the cause
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, PermissionError) and not error.filename:
        status = 403  # the Hub's, not the disk's
    if status is not None:
        said = getattr(error, "server_message", None) or ""
        return ANSWERS.get(status) or f"the Hub answers {status} {said}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it to upload"
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    name = type(error).__name__
    return f"the upload was interrupted or the Hub cannot be reached ({name})"
