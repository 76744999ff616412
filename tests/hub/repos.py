"""What the Hub of the tests holds: repos with branches, branches with commits."""

import hashlib
from dataclasses import dataclass, field

LFS_FROM = 10_000  # bytes


def is_lfs(path: str, size: int) -> bool:
    return path.endswith((".safetensors", ".png")) or size >= LFS_FROM


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def oid(path: str, content: bytes) -> str:
    """What the Hub calls a file's content: the SHA-256 of a large file, the blob of git of a small one."""
    if is_lfs(path, len(content)):
        return hashlib.sha256(content).hexdigest()
    return git_oid(content)


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """`branches` holds all commits of every branch, oldest first; pull requests are branches `refs/pr/N`."""

    name: str
    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str, onto: str | None = None) -> Commit:
        history = list(self.branches.get(onto or branch, []))
        number = sum(map(len, self.branches.values()))
        sha = hashlib.sha1(f"{self.name} {branch} {number}".encode()).hexdigest()
        self.branches[branch] = [*history, Commit(sha, message, files)]
        return self.branches[branch][-1]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((commit for log in self.branches.values() for commit in log if commit.sha == revision), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What was put there, so without the file that the Hub itself makes."""
        return {name: content for name, content in self.branches[revision][-1].files.items() if name[0] != "."}

    def messages(self, revision: str = "main") -> list[str]:
        return [commit.message for commit in self.branches[revision]]
