"""A trained folder on the Hub, in one commit."""

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import HFValidationError, parse_ratelimit_headers, validate_repo_id
from jinja2 import UndefinedError
from safetensors import SafetensorError, safe_open

from hf_ext._files import read_json
from hf_ext.hub_cards.card import CARD_FILE
from hf_ext.hub_cards.create import card_at
from hf_ext.hub_cards.folder import is_hub_id
from hf_ext.hub_cards.saved import FACTS_FILE

#: seconds before the first retry; every further pause is twice as long
PAUSE = 1.0
_ADAPTER_CONFIG = "adapter_config.json"
_CONFIGS = (_ADAPTER_CONFIG, "config.json")
#: names of files and folders that are never sent: pickles, states to resume from, logs, what is hidden or half written
_NOT_SENT = (
    *("*.bin", "*.ckpt", "*.dill", "*.distcp", "*.joblib", "*.npy", "*.npz"),
    *("*.pickle", "*.pk", "*.pkl", "*.pt", "*.pth", "*.pth.tar"),
    *("checkpoint-*", "global_step*", "optimizer.*", "optimizer_[0-9]*", "rng_state*", "scaler.*", "scheduler.*"),
    *(".*", "*.part", "__pycache__", "events.out.tfevents*", "runs"),
)
#: weights under the names that loaders look for, whole, in shards, or the index of shards
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_NOT_DONE = frozenset({429, 503})
_T = TypeVar("_T")


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
    retries: int = 3,
) -> CommitInfo:
    """Publish a trained folder as one commit; the repo and the branch are created where they are missing.

    Everything is uploaded before the commit is made, so that the repo never shows half of it. What an interrupted call
    uploaded is not uploaded again by the next one, and files that did not change are left out of the commit.

    Of the files that only the branch has, those are removed that a loader would take for the folder's weights: shards,
    indices and pickles of an earlier `model` or `adapter_model` next to the one that is sent. All others stay.

    The snippet of a card that `create_card` wrote, and nobody changed since, loads from the repo. An adapter's base
    model that is a path of this machine is not named.

    Pickles (`*.bin`, `*.pt`, `training_args.bin` among them), checkpoints, states of optimizers, logs (`runs`) and
    hidden files stay at home.

    Args:
        folder: a folder with `adapter_config.json` or `config.json`, weights in `*.safetensors`, and `README.md`.
        repo_id: "owner/name", or "name" for one's own.
        private: whether a new repo is private (None: as the owner's settings say). An existing one stays as it is; if
            it is public and True was asked for, nothing is sent to it.
        revision: branch to commit to, "main" if None.
        create_pr: open a pull request against "main" instead.
        commit_message: "Upload with hf-ext" if None.
        token: access token; the one of the login or of `HF_TOKEN` if None.
        retries: how often to try again after a dropped connection, a timeout or an answer such as 429 or 503. The
            pauses grow, and the Hub's own `Retry-After` is waited for. The client retries uploads by itself, too.

    Returns:
        The commit: `oid`, `commit_url` and, with `create_pr`, `pr_url`. If nothing has changed, the last commit.

    Raises:
        ValueError: a folder or an argument that cannot be published, found before anything is sent; or, before
            anything is uploaded, metadata of `README.md` that the Hub refuses, or a public repo for `private=True`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused (401, 403, 404...), or still failed after the retries.
        huggingface_hub.errors.HTTPError: the connection still failed after the retries.
    """
    source = Path(folder)
    _check_arguments(repo_id, revision, create_pr, retries)
    files = _files(source)
    _check_folder(source, files)
    _card(source, repo_id)
    api = HfApi(token=token)

    def commit() -> CommitInfo:
        # new operations each time: they ask the Hub what it has, so a commit whose answer got lost is not made twice.
        # `upload_folder` would do less than this: it makes several commits of a large folder.
        stale = _stale(api.list_repo_files(repo, revision=revision), sent)
        return api.create_commit(
            repo_id=repo,
            operations=[
                *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in sent.items()),
                *(CommitOperationDelete(path_in_repo=name) for name in stale),
            ],
            commit_message=commit_message or "Upload with hf-ext",
            revision=revision,
            create_pr=create_pr,
        )

    repo = _retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id, retries)
    changed = {**_card(source, repo), _ADAPTER_CONFIG: _config_without_path(source)}
    sent: dict[str, Path | bytes] = files | {name: content for name, content in changed.items() if content is not None}
    if private and not _retry(lambda: api.model_info(repo).private, retries):
        raise ValueError(
            f"private: found True and {repo!r} public, allowed are another name or to make that one private"
        )
    if revision not in (None, "main") and not str(revision).startswith("refs/"):
        _retry(lambda: api.create_branch(repo, branch=str(revision), exist_ok=True), retries)
    # of a pull request the Hub cannot be asked whether it is there already, so no second one is opened on suspicion
    return _retry(commit, retries, only_if_not_done=create_pr)


def _stale(there: Iterable[str], sent: Iterable[str]) -> list[str]:
    """Weights of the branch that a loader would take in addition to those that are sent, or in their place."""
    kinds = {_kind(name) for name in sent} - {None}
    return sorted(name for name in set(there) - set(sent) if _kind(name) in kinds)


def _kind(name: str) -> tuple[str, bool] | None:
    """Which weights a file is part of: those of the model, or of the adapter, in its folder."""
    parent, _, file = name.rpartition("/")
    weights = _WEIGHTS.fullmatch(file)
    return None if weights is None else (parent, weights[1] == "adapter_")


def _card(folder: Path, repo: str) -> dict[str, bytes]:
    try:
        return card_at(folder, repo)
    except (AttributeError, TypeError, UndefinedError) as error:
        raise ValueError(
            f"folder: found a broken {str(folder / FACTS_FILE)!r} ({error}), allowed is what create_card wrote"
        ) from None


def _retry(call: Callable[[], _T], retries: int, only_if_not_done: bool = False) -> _T:
    pause = PAUSE
    for left in range(retries, -1, -1):
        try:
            return call()
        except (HTTPError, json.JSONDecodeError) as error:  # the latter: a proxy's page where the client awaits JSON
            asked = _asked_pause(error)
            if not left or not _is_transient(error, only_if_not_done):
                raise
        except RuntimeError as error:  # how the client wraps a failed upload, after retries of its own
            if isinstance(error.__cause__, HTTPError):
                error.__cause__.add_note(str(error))
                raise error.__cause__ from None
            raise
        time.sleep(pause if asked is None else asked)
        pause *= 2
    raise AssertionError("the last round returns or raises")


def _is_transient(error: Exception, only_if_not_done: bool) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (_NOT_DONE if only_if_not_done else _TRANSIENT)
    return not only_if_not_done


def _asked_pause(error: Exception) -> float | None:
    """Seconds that the Hub asks to wait, if it does."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else None


def _check_arguments(repo_id: str, revision: str | None, create_pr: bool, retries: int) -> None:
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError as error:
        raise ValueError(f"repo_id: found {repo_id!r}, allowed is 'owner/name' or 'name' ({error})") from None
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"revision: found {revision!r}, allowed with create_pr is None or 'main'")
    if retries < 0:
        raise ValueError(f"retries: found {retries}, allowed is 0 or more")


def _files(folder: Path) -> dict[str, Path]:
    """Names in the repo and paths of all files to send."""
    if not folder.is_dir():
        raise ValueError(f"folder: found no folder {str(folder)!r}, allowed is one that a training wrote")
    root, files = folder.resolve(), {}
    for parent, folders, names in os.walk(folder):
        # what stays at home is not looked into: checkpoints come and go while a run's folder is sent
        folders[:] = filter(_is_sent, folders)
        for path in (Path(parent, name) for name in (*folders, *filter(_is_sent, names))):
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(root)):
                link = f"a link {relative!r} to {str(path.readlink())!r}"
                raise ValueError(f"folder: found {link}, allowed are links to files of the same folder")
            if path.is_file():
                files[relative] = path
    return dict(sorted(files.items()))


def _is_sent(name: str) -> bool:
    return not any(fnmatchcase(name.lower(), pattern) for pattern in _NOT_SENT)


def _check_folder(folder: Path, files: dict[str, Path]) -> None:
    config = next((files[name] for name in _CONFIGS if name in files), None)
    if config is None:
        raise ValueError(f"folder: found neither of {', '.join(_CONFIGS)} in {str(folder)!r}, allowed is one of them")
    read_json(config, "folder")
    weights = [path for name, path in files.items() if name.endswith(".safetensors")]
    if not any(path.parent == folder for path in weights):
        raise ValueError(f"folder: found no *.safetensors in {str(folder)!r}, allowed are weights in that format only")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):  # reads the header and holds it against the file's size
                pass
        except SafetensorError as error:
            raise ValueError(f"folder: found a broken {str(path)!r} ({error}), allowed are whole files") from None
    for name, path in files.items():
        if name.endswith(".safetensors.index.json"):
            shards = read_json(path, "folder")["weight_map"].values()
            named = {Path(name).with_name(shard).as_posix() for shard in shards}
            if missing := sorted(named - set(files)):
                raise ValueError(f"folder: found no {missing[0]!r} of {name!r}, allowed are all files of the index")
    if CARD_FILE not in files:
        raise ValueError(f"folder: found no README.md in {str(folder)!r}, allowed is one: make it with create_card")
    try:
        files[CARD_FILE].read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"folder: found a README.md in {str(folder)!r} that is no UTF-8 ({error})") from None


def _config_without_path(folder: Path) -> bytes | None:
    """An adapter's configuration that names no path of this machine, where the one in the folder does."""
    path = folder / _ADAPTER_CONFIG
    config = read_json(path, "folder") if path.is_file() else {}
    base = config.get("base_model_name_or_path")
    if base is None or is_hub_id(str(base), folder):
        return None
    return json.dumps(config | {"base_model_name_or_path": None}, indent=2, sort_keys=True).encode()
