"""Programs that take turns: each does one round when it is told to, and says in JSON what it measured."""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, Any

Said = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a program said: after every turn, and at the end."""

    turns: list[Said]
    last: Said


def take_turns(programs: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Measured]:
    """Let programs take one turn a round each, in an order drawn anew.

    A program prints lines of JSON objects: one when it is ready; then, for every line that it reads, one of its turn;
    and one at the end. Whatever else it prints is not looked at. It finds the packages that this process finds.

    Args:
        programs: by name, arguments of Python: a script, or `-m` and a module, and what they take.
        rounds: how many.

    Raises:
        RuntimeError: a program that ended early, with the end of what it printed as errors.
    """
    with ExitStack() as stack:
        started = {name: stack.enter_context(_started(name, arguments)) for name, arguments in programs.items()}
        for program in started.values():
            program.listen()
        said: dict[str, list[Said]] = {name: [] for name in started}
        for round_ in range(rounds):
            for name in random.Random(round_).sample(list(started), len(started)):
                said[name].append(started[name].turn())
        return {name: Measured(said[name], program.listen()) for name, program in started.items()}


@contextmanager
def _started(name: str, arguments: Sequence[str]) -> Iterator["_Program"]:
    """A program that is gone at the end, whatever happens."""
    paths = [path for path in sys.path if path] + [os.getcwd()] * ("" in sys.path)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", *arguments],  # beside a script may lie names that it does not mean
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"},
        )
        try:
            yield _Program(name, process, errors)
        finally:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class _Program:
    """A process and the file of what it prints as errors."""

    name: str
    process: "subprocess.Popen[str]"
    errors: IO[bytes]

    def turn(self) -> Said:
        """Let it go on, until it says something."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and `listen` says how
        return self.listen()

    def listen(self) -> Said:
        """The next object that it prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            try:
                said = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(said, dict):
                return said
        status = self.process.wait()
        self.errors.seek(0)
        words = self.errors.read().decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{self.name}: found an end with status {status}: {' / '.join(words[-5:]) or 'no words'}")
