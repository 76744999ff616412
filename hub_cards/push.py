"""A trained folder on the Hub, in one commit."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import UndefinedError

from hf_ext._files import read_json
from hf_ext.hub_cards.card import CARD_FILE
from hf_ext.hub_cards.create import card_at
from hf_ext.hub_cards.folder import is_hub_id
from hf_ext.hub_cards.published import RemoteCard, without_local_base
from hf_ext.hub_cards.retries import retry
from hf_ext.hub_cards.saved import FACTS_FILE
from hf_ext.hub_cards.sendable import ADAPTER_CONFIG, check_folder, files_to_send
from hf_ext.hub_cards.sendable import NOT_SENT as _NOT_SENT  # noqa: F401

#: weights under the names that loaders look for, whole, in shards, or the index of shards
_WEIGHTS = re.compile(r"(adapter_|pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


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
    model that is a path of this machine is not named: neither in its configuration nor in the header of `README.md`,
    whoever wrote that. The folder itself stays as it is.

    The `README.md` of the branch is replaced if the folder's is somebody's own, or if nobody wrote the branch's: it is
    as an earlier push left it, the unfilled form of Trainer or peft, or the empty one with a licence that the Hub
    itself makes, whose licence then goes into a card that names none. Any other one stays, with a warning.

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
        retries: how often to try again after a dropped connection, a minute without an answer, or one such as 429 or
            503. The pauses grow, and the Hub's own `Retry-After` is waited for, up to five minutes. The client retries
            uploads by itself, too.

    Returns:
        The commit: `oid`, `commit_url` and, with `create_pr`, `pr_url`. If nothing has changed, the last commit.

    Raises:
        ValueError: a folder or an argument that cannot be published, found before anything is sent; or, before
            anything is uploaded, metadata of `README.md` that the Hub refuses, or a public repo for `private=True`.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused (401, 403, 404...), still failed after the retries, or
            asked for a longer pause.
        huggingface_hub.errors.HTTPError: the connection still failed after the retries, or nothing was answered.
    """
    source = Path(folder)
    _check_arguments(repo_id, revision, create_pr, retries)
    files = files_to_send(source)
    check_folder(source, files)
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

    repo = retry(lambda: api.create_repo(repo_id, private=private, exist_ok=True).repo_id, retries)
    if private and not retry(lambda: api.model_info(repo).private, retries):
        raise ValueError(
            f"private: found True and {repo!r} public, allowed are another name or to make that one private"
        )
    if revision not in (None, "main") and not str(revision).startswith("refs/"):
        retry(lambda: api.create_branch(repo, branch=str(revision), exist_ok=True), retries)
    remote = retry(lambda: RemoteCard.of(api, repo, revision), retries)
    sent: dict[str, Path | bytes] = {**files, **_card(source, repo, remote.license), **_config_without_path(source)}
    if remote.stays(source):
        del sent[CARD_FILE]
    elif isinstance(sent[CARD_FILE], Path):
        sent[CARD_FILE] = without_local_base(source)
    # of a pull request the Hub cannot be asked whether it is there already, so no second one is opened on suspicion
    return retry(commit, retries, only_if_not_done=create_pr)


def _stale(there: Iterable[str], sent: Iterable[str]) -> list[str]:
    """Weights of the branch that a loader would take in addition to those that are sent, or in their place."""
    kinds = {_kind(name) for name in sent} - {None}
    return sorted(name for name in set(there) - set(sent) if _kind(name) in kinds)


def _kind(name: str) -> tuple[str, bool] | None:
    """Which weights a file is part of: those of the model, or of the adapter, in its folder."""
    parent, _, file = name.rpartition("/")
    weights = _WEIGHTS.fullmatch(file)
    return None if weights is None else (parent, weights[1] == "adapter_")


def _card(folder: Path, repo: str, license: str | None = None) -> dict[str, bytes]:
    try:
        return card_at(folder, repo, license)
    except (AttributeError, RecursionError, TypeError, UndefinedError) as error:
        raise ValueError(
            f"folder: found a broken {str(folder / FACTS_FILE)!r} ({error}), allowed is what create_card wrote"
        ) from None


def _check_arguments(repo_id: str, revision: str | None, create_pr: bool, retries: int) -> None:
    try:
        validate_repo_id(repo_id or "")
    except HFValidationError as error:
        raise ValueError(f"repo_id: found {repo_id!r}, allowed is 'owner/name' or 'name' ({error})") from None
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"revision: found {revision!r}, allowed with create_pr is None or 'main'")
    if retries < 0:
        raise ValueError(f"retries: found {retries}, allowed is 0 or more")


def _config_without_path(folder: Path) -> dict[str, bytes]:
    """An adapter's configuration that names no path of this machine, where the one in the folder does."""
    path = folder / ADAPTER_CONFIG
    config = read_json(path, "folder") if path.is_file() else {}
    base = config.get("base_model_name_or_path")
    if base is None or is_hub_id(str(base), folder):
        return {}
    public = config | {"base_model_name_or_path": None}
    return {ADAPTER_CONFIG: json.dumps(public, indent=2, sort_keys=True).encode()}
