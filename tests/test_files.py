"""Files that are written whole or not at all."""

import json
import os
import stat
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_ext._files import read_json, replaced_file, write_atomically
from hf_ext.hub_cards.plots import new_figure, save_figure
from hf_ext.hub_cards.push import _NOT_SENT
from hf_ext.trainers.checkpoints import read_state, write_state


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _write(path: Path) -> None:
    write_atomically(path, "new")


def _save_tensors(path: Path) -> None:
    with replaced_file(path) as file:
        save_file({"x": torch.ones(2)}, file)


def _draw(path: Path) -> None:
    save_figure(new_figure(1, 1)[0], path)


WRITERS = pytest.mark.parametrize("write", [_write, _save_tensors, _draw])


@WRITERS
def test_a_new_file_is_like_any_other(tmp_path: Path, umask: int, write: Callable[[Path], None]) -> None:
    write(tmp_path / "file.png")
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


@WRITERS
def test_a_link_is_replaced_and_not_followed(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "file.png").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "file.png")
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert not (tmp_path / "file.png").is_symlink() and (tmp_path / "file.png").is_file()


@WRITERS
def test_links_under_likely_names_are_not_followed(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "elsewhere").write_text("theirs")
    likely = {".file.png.part", "file.png.part", "file.png.tmp", ".file.png.tmp", ".file.png"}
    for name in likely:
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "file.png")
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {*likely, "elsewhere", "file.png"}


def test_a_name_that_is_taken_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_ext._files.secrets.token_hex", lambda size: "foreseen")
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / ".file.foreseen.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "file.json", "new")
    assert (tmp_path / "elsewhere").read_text() == "theirs"
    assert (tmp_path / ".file.foreseen.json").is_symlink() and not (tmp_path / "file.json").exists()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
def test_the_old_content_stays_if_writing_fails(tmp_path: Path, error: type[BaseException]) -> None:
    write_atomically(tmp_path / "file", "old")
    with pytest.raises(error), replaced_file(tmp_path / "file") as file:
        file.write_text("half of the n")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_nothing_is_left_where_the_place_cannot_be_taken(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_readers_find_the_old_or_the_new(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old")
    with replaced_file(tmp_path / "file") as file:
        file.write_text("half of the n")
        assert (tmp_path / "file").read_text() == "old"
        file.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


def test_what_is_not_finished_is_never_published(tmp_path: Path) -> None:
    for name in ("README.md", "model.safetensors", "losses.png", "plain"):
        with replaced_file(tmp_path / name) as file:
            assert file.parent == tmp_path  # a rename across file systems would not be one step
            assert file.suffix == Path(name).suffix or not Path(name).suffix
            assert any(fnmatch(file.name, pattern) for pattern in _NOT_SENT)


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    contents = ["a" * 50_000, "b" * 80_000]
    write_atomically(tmp_path / "file", contents[0])
    stop, seen = threading.Event(), set()

    def write(content: str) -> None:
        while not stop.is_set():
            write_atomically(tmp_path / "file", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for _ in range(200):
        seen.add((tmp_path / "file").read_text())
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= set(contents)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_text_is_utf_8_with_its_own_line_ends(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "ä\n\r\n")
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa4\n\r\n"
    write_atomically(tmp_path / "file", b"\xff")
    assert (tmp_path / "file").read_bytes() == b"\xff"


def test_a_state_whose_writing_fails_leaves_the_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_state(tmp_path, {"x": torch.ones(2), "n": 1})

    def fail(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_ext.trainers.checkpoints.save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        write_state(tmp_path, {"x": torch.zeros(2), "n": 2})
    assert read_state(tmp_path)["n"] == 1 and read_state(tmp_path)["x"].sum() == 2
    assert {path.name for path in tmp_path.iterdir()} == {"method_state.json", "method_state.safetensors"}
    assert load_file(tmp_path / "method_state.safetensors").keys() == {"x"}


@pytest.mark.parametrize("text", ['{"a": [1, null]}', '\ufeff{"a": [1, null]}'], ids=["plain", "byte order mark"])
def test_json_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"folder: found a broken '.*x\.json' \(.*\), allowed is JSON"),
        (b"", r"folder: found a broken"),
        (b'{"a": "\xff"}', r"folder: found a broken"),
        (json.dumps([1]).encode(), r"folder: found a list in '.*x\.json', allowed is a JSON object"),
        (b"null", r"folder: found a NoneType in"),
        (b"[" * 100_000, r"folder: found a broken"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, r"folder: found a broken '.*' \(nested deeper than 100 levels\)"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", r"folder: found a broken"),
    ],
    ids=["half", "empty", "no UTF-8", "list", "null", "unclosed", "deep", "one too deep"],
)
def test_json_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "x.json", "folder")


def test_json_may_be_as_deep_as_it_says(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a":' + "[" * 99 + "]" * 99 + "}")
    assert list(read_json(tmp_path / "x.json")) == ["a"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "x.json")
    for name in ("x.json", "link.json"):
        with pytest.raises(
            ValueError, match=rf"folder: found '.*{name}', a pipe, socket or device, allowed is a file"
        ):
            read_json(tmp_path / name, "folder")


def test_a_json_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "x.json")
