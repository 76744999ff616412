"""Publishing a folder, and what is left of it when the connection is bad."""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from server import Hub

from hf_ext.hub_cards import create_card, push_folder

SENT = {"README.md", "adapter_config.json", "adapter_model.safetensors", "losses.png", "trainer_state.json"}
HOME = (
    "training_args.bin",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state_0.pth",
    "Old.PKL",
    "best.pth.tar",
    "cache.pk",
    "features.npy",
    "features.npz",
    "events.out.tfevents.1.host.2.0",
    ".hidden",
    "x.safetensors.part",
)
HOME_FOLDERS = ("checkpoint-1", "runs", "__pycache__", ".cache")

#: pushes one after the other in one process; pauses are noted instead of waited for
PUSHES = """
import json, sys, time
pauses = []
time.sleep = pauses.append
import hf_ext.hub_cards.retries
hf_ext.hub_cards.retries.SILENCE = 0.5
from huggingface_hub.errors import HfHubHTTPError
from hf_ext.hub_cards.push import push_folder
import warnings
result = []
for job in json.loads({jobs!r}):
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            info = push_folder(**job)
        done = dict(error=None, oid=info.oid, url=str(info), pull=info.pr_url)
        done |= dict(said=[str(one.message) for one in said if "README" in str(one.message)])
    except Exception as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        text = " ".join([str(error), *getattr(error, "__notes__", [])])
        done = dict(error=type(error).__name__, status=status, text=text)
    heavy = sorted(sys.modules.keys() & {{"torch", "transformers", "peft"}})
    result.append(done | dict(pauses=list(pauses), heavy=heavy))
    pauses.clear()
"""


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "trained", seed: int = 0) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text('{"peft_type": "MOLA"}')
        (folder / "adapter_model.safetensors").write_bytes(weights(seed))
        (folder / "losses.png").write_bytes(b"\x89PNG" + bytes([seed]))
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        (folder / "trainer_state.json").write_text("{}")
        return folder

    return make


@pytest.fixture
def push(in_process: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    def run(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
        text = json.dumps([{**job, "folder": str(job["folder"])} for job in jobs])
        done: list[dict[str, Any]] = in_process(PUSHES.format(jobs=text))
        return done

    return run


def weights(seed: int) -> bytes:
    return save({"lora_A": np.full((256, 1024), seed, dtype=np.float32)})


def put(content: bytes) -> str:
    return f"PUT /lfs/{hashlib.sha256(content).hexdigest()}"


def test_one_commit_with_what_belongs_there(
    hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]
) -> None:
    folder = make_folder()
    for name in HOME:
        (folder / name).write_bytes(b"stays")
    for name in HOME_FOLDERS:
        (folder / name).mkdir()
        (folder / name / "adapter_model.safetensors").write_bytes(b"stays")
    (folder / "en").mkdir()
    (folder / "en" / "adapter_config.json").write_text("{}")
    (folder / "link.json").symlink_to("trainer_state.json")
    (folder / "runs" / "outside").symlink_to("/")  # not sent, so none of our business

    to = {"folder": folder, "repo_id": "me/x"}
    first, again, branch, pull, short = push(
        to | {"private": True},
        to,
        to | {"revision": "v/2", "commit_message": "Again", "repo_id": "team/x"},
        to | {"create_pr": True, "repo_id": "me/y"},
        {"folder": folder, "repo_id": "z", "token": "hf_other"},
    )
    expected = {name: (folder / name).read_bytes() for name in (*SENT, "en/adapter_config.json", "link.json")}
    repo = hub.repos["me/x"]
    assert repo.private
    assert repo.files() == expected
    assert repo.messages() == ["initial commit", "Upload with hf-ext"]
    assert first["oid"] == again["oid"] == repo.branches["main"][-1].sha
    assert first["url"] == f"{hub.url}/me/x/commit/{first['oid']}"
    assert first["heavy"] == []

    other = hub.repos["team/x"]
    assert not other.private
    assert other.files("v/2") == expected and other.files("main") == {}
    assert other.messages("v/2") == ["initial commit", "Again"] and branch["pull"] is None

    asked = hub.repos["me/y"]
    assert asked.files("refs/pr/1") == expected and asked.files("main") == {}
    assert pull["pull"] == f"{hub.url}/me/y/discussions/1"
    assert list(asked.branches) == ["main", "refs/pr/1"]
    assert hub.repos["me/z"].files() == expected and short["error"] is None
    assert len(hub.requests("PUT *")) == 2  # both large files, once for all repos


def test_changed_files_only(hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]) -> None:
    before, after = make_folder("before", 1), make_folder("after", 2)
    (after / "README.md").write_text("# Better")
    hub.add("me/x", {"mine.txt": b"stays"})
    push({"folder": before, "repo_id": "me/x"}, {"folder": after, "repo_id": "me/x", "revision": "main"})
    assert hub.repos["me/x"].files() == {"mine.txt": b"stays"} | {name: (after / name).read_bytes() for name in SENT}
    assert len(hub.repos["me/x"].branches["main"]) == 3
    assert len(hub.requests("POST /api/models/me/x/branch/*")) == 0


OLD = {
    "model.safetensors",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "other/model.safetensors",
    "vae.safetensors",
    "model.fp16.safetensors",
    "adapter_model.safetensors",
    "training_args.bin",
    "notes.txt",
}


def test_no_older_weights_are_left(hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]) -> None:
    repo = hub.add("me/x", dict.fromkeys(OLD, b"old"))
    repo.branches["dev"] = list(repo.branches["main"])
    index = "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    sharded, whole = make_folder("sharded"), make_folder("whole")
    for shard in shards.values():
        (sharded / shard).write_bytes(weights(1))
    (sharded / index).write_text(json.dumps({"weight_map": shards}))
    (whole / "adapter_model.safetensors").rename(whole / "model.safetensors")
    for folder in (sharded, whole):
        (folder / "adapter_model.safetensors").unlink(missing_ok=True)
    kept = OLD - {"model.safetensors", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"}

    hub.fail("lost_answer", "POST /api/models/me/x/commit/*")
    (done,) = push({"folder": sharded, "repo_id": "me/x"})
    assert done["error"] is None
    assert set(repo.files()) == {file.name for file in sharded.iterdir()} | kept
    assert len(repo.branches["main"]) == 2
    assert set(repo.files("dev")) == OLD
    push(*({"folder": whole, "repo_id": "me/x", **to} for to in ({"create_pr": True}, {"revision": "dev"}, {})))
    for branch in ("refs/pr/1", "dev", "main"):
        assert set(repo.files(branch)) == {file.name for file in whole.iterdir()} | kept, branch


def test_private_is_not_sent_to_a_public_repo(
    hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]
) -> None:
    hub.add("me/x", {})
    (done,) = push({"folder": make_folder(), "repo_id": "me/x", "private": True})
    assert done["error"] == "ValueError" and "private: found True and 'me/x' public" in done["text"]
    assert hub.repos["me/x"].files() == {} and hub.objects == {}


#: what fails once or twice, on the way of a push to `me/{name}`; {weights} is the request that uploads them
PASSING: dict[str, tuple[str | int, str, int]] = {
    "create": (503, "POST /api/repos/create", 2),
    "created": ("lost_answer", "POST /api/repos/create", 1),
    "branch": (500, "POST /api/models/me/branch/branch/*", 1),
    "branched": ("lost_answer", "POST /api/models/me/branched/branch/*", 1),
    "card": (502, "POST /api/validate-yaml", 1),
    "modes": ("drop_upload", "POST /api/models/me/modes/preupload/*", 2),
    "batch": (504, "POST /me/batch.git/info/lfs/objects/batch", 2),
    "hang-up": ("drop_upload", "{weights}", 3),
    "busy": (429, "{weights}", 1),
    "down": (500, "{weights}", 2),
    "sent": ("lost_answer", "{weights}", 1),
    "verify": (503, "POST {weights}/verify", 1),
    "late": (503, "POST /api/models/me/late/commit/*", 3),
    "commit-busy": (429, "POST /api/models/me/commit-busy/commit/*", 1),
    "commit-hang-up": ("drop_upload", "POST /api/models/me/commit-hang-up/commit/*", 1),
    "committed": ("lost_answer", "POST /api/models/me/committed/commit/*", 1),
}


def test_passing_failures(hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]) -> None:
    """Every one is retried, by the client or by us, and leaves one whole commit."""
    jobs: list[dict[str, Any]] = []
    for seed, (name, (kind, pattern, times)) in enumerate(PASSING.items()):
        upload = put(weights(seed))
        verify = upload.replace("PUT ", "")
        hub.fail(kind, pattern.replace("POST {weights}", f"POST {verify}").replace("{weights}", upload), times)
        revision = "dev" if name.startswith("branch") else None
        jobs.append({"folder": make_folder(name, seed), "repo_id": f"me/{name}", "revision": revision})
    # all in one process, which is fast; requests that name no repo fail for the first pushes that make them
    done = dict(zip(PASSING, push(*jobs), strict=True))
    assert {name: was["error"] for name, was in done.items()} == dict.fromkeys(PASSING)
    assert hub.failures == []
    for job, name in zip(jobs, PASSING, strict=True):
        branch = job["revision"] or "main"
        expected = {file.name: file.read_bytes() for file in job["folder"].iterdir()}
        assert hub.repos[f"me/{name}"].files(branch) == expected, name
        assert hub.repos[f"me/{name}"].messages(branch) == ["initial commit", "Upload with hf-ext"], name
    assert done["late"]["pauses"] == [1, 2, 4]
    assert done["commit-busy"]["pauses"] == [0]  # what the Hub asked for
    assert done["committed"]["oid"] == hub.repos["me/committed"].branches["main"][-1].sha


#: what fails for good: status of the error (None: it has none), kind, request, times, uploads of the weights in all
LASTING: dict[str, tuple[int | None, str | int, str, int, int]] = {
    "card": (None, 400, "POST /api/validate-yaml", 1, 1),  # the first, since this request names no repo
    "hang-up": (None, "drop_upload", "{weights}", 6, 7),
    "down": (503, 503, "{weights}", 6, 7),
    "busy": (429, 429, "{weights}", 6, 7),
    "checksum": (400, 400, "{weights}", 1, 2),
    "verify": (404, 404, "POST {weights}/verify", 1, 1),
    "batch": (403, 403, "POST /me/batch.git/info/lfs/objects/batch", 1, 1),
    "modes": (404, 404, "POST /api/models/me/modes/preupload/*", 1, 1),
    "late": (503, 503, "POST /api/models/me/late/commit/*", 4, 1),
    "commit-hang-up": (None, "drop_upload", "POST /api/models/me/commit-hang-up/commit/*", 4, 1),
    "refused": (400, 400, "POST /api/models/me/refused/commit/*", 1, 1),
    "forbidden": (403, 403, "POST /api/models/me/forbidden/commit/*", 1, 1),
}


def test_lasting_failures(hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]) -> None:
    """The first push raises the client's error and commits nothing; the second sends what is missing and commits."""
    jobs: list[dict[str, Any]] = []
    uploads: dict[str, str] = {}
    for seed, (name, (_, kind, pattern, times, _)) in enumerate(LASTING.items()):
        uploads[name] = put(weights(seed))
        verify = uploads[name].replace("PUT ", "")
        hub.fail(kind, pattern.replace("POST {weights}", f"POST {verify}").replace("{weights}", uploads[name]), times)
        to = {"folder": make_folder(name, seed), "repo_id": f"me/{name}"}
        jobs += [to | {"commit_message": "first"}, to | {"commit_message": "second"}]
    done = push(*jobs)
    assert hub.failures == []
    for number, (name, (status, _, pattern, _, count)) in enumerate(LASTING.items()):
        first, second = done[2 * number : 2 * number + 2]
        assert first["error"] is not None and first["status"] == status, (name, first)
        assert second["error"] is None, (name, second)
        if "weights" in pattern:
            assert "adapter_model.safetensors" in first["text"], name  # which file it was
        if name == "card" or status in (400, 403, 404):
            assert first["pauses"] == [], name
        folder = jobs[2 * number]["folder"]
        assert hub.repos[f"me/{name}"].messages() == ["initial commit", "second"], name
        assert hub.repos[f"me/{name}"].files() == {file.name: file.read_bytes() for file in folder.iterdir()}, name
        assert len(hub.requests(uploads[name])) == count, name
        assert len(hub.requests(put((folder / "losses.png").read_bytes()))) == 1, name


def test_no_second_pull_request(hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]) -> None:
    """An answer that got lost may mean that the pull request is there; one that says "not now" does not."""
    hub.fail("lost_answer", "POST /api/models/me/lost/commit/*")
    hub.fail(503, "POST /api/models/me/busy/commit/*")
    to = {"folder": make_folder(), "create_pr": True}
    lost, busy = push(to | {"repo_id": "me/lost"}, to | {"repo_id": "me/busy"})
    assert lost["error"] is not None and list(hub.repos["me/lost"].branches) == ["main", "refs/pr/1"]
    assert busy["error"] is None and list(hub.repos["me/busy"].branches) == ["main", "refs/pr/1"]


def test_login_is_needed(hub: Hub, make_folder: Callable[..., Path], in_process: Callable[..., Any]) -> None:
    jobs = json.dumps([{"folder": str(make_folder()), "repo_id": "me/x"}])
    (done,) = in_process(PUSHES.format(jobs=jobs), HF_TOKEN="")
    assert done["status"] == 401 and done["pauses"] == []
    assert hub.repos == {}


def cut(path: Path, by: int = 10) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def deep(levels: int) -> str:
    return '{"a": ' * levels + "1" + "}" * levels


#: what is done to a good folder, and the words of the refusal
REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "neither of adapter_config.json, config.json"),
    "broken config": (lambda f: (f / "adapter_config.json").write_text("{"), "allowed is JSON"),
    "list as config": (lambda f: (f / "adapter_config.json").write_text("[]"), "allowed is a JSON object"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), r"no \*.safetensors"),
    "weights below": (lambda f: (f / "adapter_model.safetensors").rename(f / "checkpoint-1"), r"no \*.safetensors"),
    "cut weights": (lambda f: cut(f / "adapter_model.safetensors"), "broken .*adapter_model.safetensors"),
    "cut header": (lambda f: cut(f / "adapter_model.safetensors", 2**20), "broken .*adapter_model.safetensors"),
    "empty weights": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "broken"),
    "other weights": (lambda f: (f / "more.safetensors").write_bytes(b"PK" * 50), "broken .*more.safetensors"),
    "no shard": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}'),
        "no 'model-2.safetensors'",
    ),
    "card in latin-1": (lambda f: (f / "README.md").write_bytes("Löwe".encode("latin-1")), "README.md .* is no UTF-8"),
    "broken facts": (
        lambda f: (f / "hf_ext_card.json").write_text('{"said": {"hyper_parameters": [1]}}'),
        "broken .*hf_ext_card.json",
    ),
    "no card": (lambda f: (f / "README.md").unlink(), "make it with create_card"),
    "link out": (lambda f: (f / "notes.txt").symlink_to("/etc/hostname"), "a link 'notes.txt' to '/etc/hostname'"),
    "link up": (lambda f: (f / "data").symlink_to(".."), "a link 'data'"),
    "dead link": (lambda f: (f / "gone.txt").symlink_to("nothing"), "a link 'gone.txt'"),
    "pipe": (lambda f: os.mkfifo(f / "notes.txt"), "'notes.txt', a pipe"),
    "pipe below": (lambda f: (f / "x").mkdir() or os.mkfifo(f / "x" / "y"), "'x/y', a pipe"),
    "pipe as weights": (lambda f: as_pipe(f / "adapter_model.safetensors"), "'adapter_model.safetensors', a pipe"),
    "pipe as more weights": (lambda f: os.mkfifo(f / "model.safetensors"), "'model.safetensors', a pipe"),
    "pipe as card": (lambda f: as_pipe(f / "README.md"), "'README.md', a pipe"),
    "pipe as config": (lambda f: as_pipe(f / "adapter_config.json"), "'adapter_config.json', a pipe"),
    "link to a pipe": (lambda f: os.mkfifo(f / ".x") or (f / "y").symlink_to(".x"), "a link 'y'"),
    "socket": (lambda f: socket.socket(socket.AF_UNIX).bind(str(f / "s")), "'s', a pipe, socket or device"),
    **{
        f"name {name!r}": (lambda f, name=name: (f / name).write_text("x"), "the name .*rename it")
        for name in ("a\nb", "-rf", "a\\b", "a\x1b[31mb", "a\u202eb", "a\u2028b", " a", "a ", "a\udcffb")
    },
    "name of a folder": (lambda f: (f / "-x").mkdir(), "the name '-x'"),
    **{
        f"deep {name}": (lambda f, name=name: (f / name).write_text(deep(500)), "broken .* levels")
        for name in ("adapter_config.json", "hf_ext_card.json", "model.safetensors.index.json")
    },
    "deeper config": (lambda f: (f / "adapter_config.json").write_text(deep(100_000)), "broken"),
    "index of nothing": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"),
        "no map of weights to files",
    ),
    "index of numbers": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'),
        "no map of weights to files",
    ),
    "index of lists": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": [1]}'),
        "no map of weights to files",
    ),
    "index of elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/hostname"}}'),
        "no '/etc/hostname'",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_folders(
    case: str, make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process is offline: a request would be another error."""
    change, words = REFUSALS[case]
    folder = make_folder("f")
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    folder = folder.relative_to(tmp_path)
    change(folder)
    with pytest.raises(ValueError, match=f"^folder: found .*{words}"):
        push_folder(folder, "me/x")


def test_refused_arguments(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder()
    with pytest.raises(ValueError, match=r"^folder: found no folder"):
        push_folder(tmp_path / "nothing", "me/x")
    for name in ("", "a/b/c", "me/x y", "me/-x", "me/x..y", "https://hub/me/x"):
        with pytest.raises(ValueError, match=r"^repo_id: found .*allowed is 'owner/name'"):
            push_folder(folder, name)
    with pytest.raises(ValueError, match=r"^revision: found 'dev', allowed with create_pr is"):
        push_folder(folder, "me/x", revision="dev", create_pr=True)
    with pytest.raises(ValueError, match=r"^retries: found -1"):
        push_folder(folder, "me/x", retries=-1)


@pytest.mark.parametrize(("base", "sent"), [("me/base", "me/base"), ("/root/base", None), ("../base", None)])
def test_no_path_of_this_machine_is_sent(
    base: str, sent: str | None, hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]
) -> None:
    folder = make_folder()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "base_model_name_or_path": base}))
    before = (folder / "adapter_config.json").read_bytes()
    (done,) = push({"folder": folder, "repo_id": "me/x"})
    assert done["error"] is None
    config = json.loads(hub.repos["me/x"].files()["adapter_config.json"])
    assert config == {"r": 4, "base_model_name_or_path": sent}
    assert (folder / "adapter_config.json").read_bytes() == before


# ------------------------------------------------------------------------------------------------ ends
#: what would last for ever, at a push's steps; the words of the error
ENDLESS: dict[str, tuple[str, str, str]] = {
    "years": (
        "wait 99999999",
        "POST /api/models/me/years/commit/*",
        "wait for 99999999 s, allowed are up to 300",
    ),
    "digits": (f"wait {'9' * 400}", "POST /api/models/me/digits/commit/*", "asks to wait for 9999999999"),
    "limit": ("limit 86400", "POST /api/models/me/limit/commit/*", "asks to wait for 86400 s"),
    "upload": ("wait 86400", "{weights}", "asks to wait for 86400 s"),
    "modes": ("wait 86400", "POST /api/models/me/modes/preupload/*", "asks to wait for 86400 s"),
    "commit": ("silence", "POST /api/models/me/commit/commit/*", "answered nothing"),
}


def test_a_push_ends(hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]) -> None:
    jobs: list[dict[str, Any]] = []
    for seed, (name, (kind, pattern, _)) in enumerate(ENDLESS.items()):
        hub.fail(kind, pattern.replace("{weights}", put(weights(seed))), 2 if kind == "silence" else 1)
        jobs.append({"folder": make_folder(name, seed), "repo_id": f"me/{name}", "retries": 1})
    done = push(*jobs, {"folder": jobs[0]["folder"], "repo_id": "me/again"})
    for (name, (kind, _, words)), was in zip(ENDLESS.items(), done, strict=False):
        assert was["error"] is not None and words in was["text"], (name, was)
        assert was["pauses"] == ([1] if kind == "silence" else []), name
        assert set(hub.repos[f"me/{name}"].files()) == set(), name
    assert done[-1]["error"] is None


# ------------------------------------------------------------------------------------------------ the branch's card
TRAINERS = """---
library_name: transformers
tags:
- generated_from_trainer
model-index:
- name: x
  results: []
---

<!-- This model card has been generated automatically according to the information the Trainer had access to. You
should probably proofread and complete it, then remove this comment. -->

# x

This model was trained from scratch on an unknown dataset.

## Model description

More information needed

## Intended uses & limitations

More information needed

## Training and evaluation data

More information needed

## Training procedure

### Training hyperparameters

More information needed

### Framework versions

- Transformers 5.24.0
"""
#: what lies on the branch, and whether it stays where the folder's card is ours
REMOTE: dict[str, tuple[str, bool]] = {
    "words": ("---\nlicense: mit\n---\n# Mine\n", True),
    "header": ("---\nlicense: mit\nlanguage: de\n---\n", True),
    "plain": ("# Mine\n", True),
    "licence": ("---\nlicense: cc0-1.0\n---\n", False),
    "empty": ("\n", False),
    "trainers": (TRAINERS, False),
    "completed": (f"{TRAINERS}- My words\n", True),
}


def test_a_card_that_somebody_wrote_on_the_hub_stays(
    hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]
) -> None:
    ours, theirs = make_folder("ours"), make_folder("theirs", 1)
    (ours / "README.md").unlink()
    create_card(ours, "mola", license=None)
    for name, (text, _) in REMOTE.items():
        hub.add(f"me/{name}", {"README.md": text.encode()})
    done = push(*({"folder": ours, "repo_id": f"me/{name}"} for name in REMOTE))
    for (name, (text, stays)), was in zip(REMOTE.items(), done, strict=True):
        files = hub.repos[f"me/{name}"].files()
        assert was["error"] is None and files["adapter_model.safetensors"] == weights(0), name
        assert (files["README.md"] == text.encode()) == stays, name
        assert bool(was["said"]) == stays, name
    assert "README.md of 'me/words' was written or changed by somebody: it is kept" in done[0]["said"][0]
    assert b"license: cc0-1.0" in hub.repos["me/licence"].files()["README.md"]

    # ours is replaced by ours, until somebody edits it there; what somebody wrote here goes there
    repo = hub.repos["me/licence"]
    create_card(ours, dataset="me/data")
    (again,) = push({"folder": ours, "repo_id": "me/licence"})
    card = repo.files()["README.md"]
    assert again["said"] == [] and b"me/data" in card and b"license: cc0-1.0" in card
    edited = repo.files() | {"README.md": repo.files()["README.md"] + b"My words."}
    repo.commit("main", edited, "on the site")
    create_card(ours, dataset="me/other")
    kept, sent = push({"folder": ours, "repo_id": "me/licence"}, {"folder": theirs, "repo_id": "me/words"})
    assert kept["said"] and repo.files()["README.md"] == edited["README.md"]
    assert sent["said"] == [] and hub.repos["me/words"].files()["README.md"] == (theirs / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("header", "sent"),
    [
        ("base_model: /root/base\nlicense: mit", "license: mit"),
        ("base_model:\n- ../base\n- me/base", "base_model:\n- me/base"),
        ("tags:\n- base_model:adapter:/root/base\n- lora\nbase_model: /root/base", "tags:\n- lora"),
        ("base_model: me/base\nlicense:   mit # as it is", "base_model: me/base\nlicense:   mit # as it is"),
        ("base_model: C:\\\\Users\\\\me\\\\base", ""),
        ("base_model: local/base", ""),
        ("datasets:\n- /root/data\n- me/data", "datasets:\n- me/data"),
        *[(kept, kept) for kept in ("license_link: https://me.org/x", "license_link: ./LICENSE", "tags: [en, 'a:b']")],
    ],
)
def test_no_header_names_a_path_of_this_machine(
    header: str, sent: str, hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any], tmp_path: Path
) -> None:
    folder = make_folder()
    (tmp_path / "local" / "base").mkdir(parents=True)  # where the push runs
    before = f"---\n{header}\n---\n# Mine, on me/base\n"
    (folder / "README.md").write_text(before)
    (done,) = push({"folder": folder, "repo_id": "me/x"})
    assert done["error"] is None and done["said"] == []
    text = hub.repos["me/x"].files()["README.md"].decode()
    assert text == (f"---\n{sent}\n---\n" if sent else "") + "# Mine, on me/base\n"
    assert (folder / "README.md").read_text() == before


def test_a_path_in_the_words_of_a_card_is_said(
    hub: Hub, make_folder: Callable[..., Path], push: Callable[..., Any]
) -> None:
    folder = make_folder()
    (folder / "README.md").write_text("---\nbase_model: /root/base\n---\n# On /root/base\n")
    (done,) = push({"folder": folder, "repo_id": "me/x"})
    assert done["said"] == ["README.md names '/root/base' in its text, which is published as you wrote it"]
    assert hub.repos["me/x"].files()["README.md"] == b"# On /root/base\n"
