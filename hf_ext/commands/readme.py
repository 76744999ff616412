"""Tables of results in a markdown file, between two comments, written from the results themselves.

A block begins with `<!-- results: NAME -->`, where NAME is a study or "bench"; it ends with `<!-- end of results -->`.
`python -m hf_ext.commands.readme README.md FOLDER` writes all blocks anew.
"""

import os
import re
import sys
from pathlib import Path

from hf_ext.benchmarks.results import bars_table, load_results
from hf_ext.studies import StudyResult
from hf_ext.studies.report import REPORT_FILE, verdict_table
from hf_ext.studies.results import RESULTS_FILE

BENCH_FOLDER = "bench"
_QUICK = " (a quick run: it shows nothing but that everything works)"
_BLOCK = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)


def update_readme(readme: str | os.PathLike[str], results: str | os.PathLike[str]) -> None:
    """Write the blocks whose results are in the folder; the file is complete at any time.

    Raises:
        ValueError: a file without blocks.
    """
    path, folder = Path(readme), Path(results)
    text = path.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise ValueError(f"--readme: found no '<!-- results: NAME -->' in {str(path)!r}, allowed is a file with one")
    part = path.with_name(f".{path.name}.part")
    part.write_text(rewritten(text, folder, os.path.relpath(folder, path.parent)), encoding="utf-8")
    os.replace(part, path)


def rewritten(text: str, folder: Path, link: str) -> str:
    """The text with its blocks made from the results in `folder`, which is at `link` as seen from the text."""

    def block(found: re.Match[str]) -> str:
        body = _block(found["name"], folder, link)
        return found[0] if body is None else f"{found[1]}{body}\n{found[3]}"

    return _BLOCK.sub(block, text)


def _block(name: str, folder: Path, link: str) -> str | None:
    place = folder / name
    report = f"[the whole report]({link}/{name}/{REPORT_FILE})"
    if name == BENCH_FOLDER:
        measured = load_results(place)
        if not measured:
            return None
        commands = "`, `".join(sorted({result.command for result in measured}))
        return f"{bars_table(measured)}\n\n`{commands}`{_QUICK * any(result.quick for result in measured)}, {report}"
    if not (place / RESULTS_FILE).is_file():
        return None
    result = StudyResult.load(place / RESULTS_FILE)
    return f"{verdict_table(result)}\n\n`{result.command}`{_QUICK * result.quick}, {report}"


if __name__ == "__main__":
    update_readme(sys.argv[1], sys.argv[2])
