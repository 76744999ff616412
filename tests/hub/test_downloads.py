"""What the client keeps of a download that went wrong."""

import hashlib
from collections.abc import Callable
from typing import Any

from server import Hub

DOWNLOAD = """
import hashlib, time
from pathlib import Path
time.sleep = lambda seconds: None
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
def attempt(call, *args, **options):
    try:
        path = Path(call(*args, **options))
    except Exception as error:
        return type(error).__name__
    path = path / "model.safetensors" if path.is_dir() else path
    return hashlib.sha256(path.read_bytes()).hexdigest()
file = ("me/x", "model.safetensors")
"""
CONTENT = bytes(range(256)) * 100
RIGHT = hashlib.sha256(CONTENT).hexdigest()


def test_truncated_downloads(hub: Hub, in_process: Callable[..., Any]) -> None:
    hub.add("me/x", {"config.json": b"{}", "model.safetensors": CONTENT})
    hub.fail("drop_download", "GET /me/x/resolve/*/model.safetensors", 1000)
    failed = in_process(f"""{DOWNLOAD}
result = [
    attempt(hf_hub_download, *file),
    attempt(snapshot_download, "me/x"),
    attempt(hf_hub_download, *file, local_files_only=True),
    attempt(snapshot_download, "me/x", local_files_only=True),
    try_to_load_from_cache(*file),
    [path.name for path in Path(HF_HUB_CACHE).rglob("*") if path.is_file() and path.stat().st_size > 1000],
]""")
    assert RIGHT not in failed[:2] and failed[2:4] == ["LocalEntryNotFoundError", "IncompleteSnapshotError"]
    assert failed[4:] == [None, []]
    hub.failures.clear()
    hub.fail("drop_download", "GET /me/x/resolve/*/model.safetensors")  # once: the client resumes
    before = len(hub.requests("GET */model.safetensors"))
    both = in_process(f"{DOWNLOAD}\nresult = [attempt(hf_hub_download, *file), attempt(snapshot_download, 'me/x')]")
    assert both == [RIGHT, RIGHT]
    assert len(hub.requests("GET */model.safetensors")) == before + 2


def test_wrong_bytes_of_the_right_length_are_found_by_verifying(hub: Hub, in_process: Callable[..., Any]) -> None:
    hub.add("me/x", {"config.json": b"{}", "model.safetensors": CONTENT})
    hub.fail("wrong_bytes", "GET /me/x/resolve/*/model.safetensors")
    found = in_process(f"""{DOWNLOAD}
from huggingface_hub import HfApi
snapshot_download("me/x")
first = [mismatch["path"] for mismatch in HfApi().verify_repo_checksums("me/x").mismatches]
result = [first, attempt(hf_hub_download, *file, force_download=True)]""")
    assert found == [["model.safetensors"], RIGHT]
