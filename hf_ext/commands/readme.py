"""Tables of results in a markdown file, between two comments, written from the results themselves.

A block begins with `<!-- results: NAME -->` and ends with `<!-- end of results -->`. NAME is a study, "bench", or
"summary", which is one row for every claim of every study.
`python -m hf_ext.commands.readme README.md FOLDER` writes all blocks anew.
"""

import os
import posixpath
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hf_ext._files import write_atomically
from hf_ext._reports import markdown_table
from hf_ext.benchmarks.results import bars_table, load_results
from hf_ext.studies import StudyResult
from hf_ext.studies.report import REPORT_FILE, verdict_table
from hf_ext.studies.results import RESULTS_FILE, Judged

BENCH_FOLDER = "bench"
SUMMARY = "summary"
_QUICK = " (a quick run: it shows nothing but that everything works)"
_BLOCK = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end of results -->)", re.DOTALL)
_VERDICTS = ("shown", "not shown", "reversed")


def update_readme(readme: str | os.PathLike[str], results: str | os.PathLike[str]) -> None:
    """Write the blocks whose results are in the folder; the file is complete at any time.

    Raises:
        ValueError: a file without blocks.
    """
    path, folder = Path(readme), Path(results)
    text = path.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise ValueError(f"--readme: found no '<!-- results: NAME -->' in {str(path)!r}, allowed is a file with one")
    write_atomically(path, rewritten(text, folder, os.path.relpath(folder, path.parent)))


def rewritten(text: str, folder: Path, link: str) -> str:
    """The text with its blocks made from the results in `folder`, which is at `link` as seen from the text."""

    def block(mark: re.Match[str]) -> str:
        body = _summary(folder, link) if mark["name"] == SUMMARY else _block(mark["name"], folder, link)
        return mark[0] if body is None else f"{mark[1]}{body}\n{mark[3]}"

    return _BLOCK.sub(block, text)


def _block(name: str, folder: Path, link: str) -> str | None:
    place = folder / name
    report = f"[the whole report]({_report(name, link)})"
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


def _report(name: str, link: str) -> str:
    return posixpath.normpath(f"{link}/{name}/{REPORT_FILE}")


# ---------------------------------------------------------------------------------------------------- summary
def _summary(folder: Path, link: str) -> str | None:
    """One row for every claim of the studies in `folder`, and how many aims of the benchmarks are met."""
    results = [StudyResult.load(path) for path in sorted(folder.glob(f"*/{RESULTS_FILE}"))]
    if not results:
        return None
    rows = [row for result in results for row in _claims(result, link)]
    quick = _QUICK * any(result.quick for result in results)
    body = markdown_table(["method", "claim", "verdict", "n", "data"], rows) + quick
    aims = Counter(bar.verdict for measured in load_results(folder / BENCH_FOLDER) for bar in measured.bars)
    if aims:
        counts = ", ".join(f"{aims[verdict]} {verdict}" for verdict in ("met", "unclear", "not met"))
        body += f"\n\nOf {aims.total()} aims for speed: {counts} ([report]({_report(BENCH_FOLDER, link)}))."
    return body


def _claims(result: StudyResult, link: str) -> Iterator[list[str]]:
    """Rows for the comparisons in the study's metric whose first system is the method, in whichever form.

    A system is a form of the method if its name begins with the same word as that of the study's first comparison
    ("MoLA-Grad", "MoLA-Router"). What baselines have over each other is no claim.
    """
    judged = [row for row in result.judged if row.detail is None]
    method = _first_word(judged[0].method) if judged else ""
    claims: dict[tuple[str, str], list[Judged]] = {}
    for row in judged:
        if _first_word(row.method) == method:
            claims.setdefault((row.method, row.baseline), []).append(row)
    for (system, baseline), verdicts in claims.items():
        pairs = sorted({row.difference.pairs for row in verdicts})
        seeds = " to ".join(map(str, dict.fromkeys((pairs[0], pairs[-1]))))
        name = f"[{method}]({_report(result.name, link)})"
        yield [name, f"{system} beats {baseline}", condensed(verdicts), seeds, ", ".join(_data(result, verdicts))]


def condensed(rows: Sequence[Judged]) -> str:
    """The verdicts of one comparison over its cases, with the names of those whose verdict is not the most frequent.

    The cases that are reversed are always named.
    """
    cases = {verdict: [row.case for row in rows if row.difference.verdict == verdict] for verdict in _VERDICTS}
    if len(rows) == 1:
        return f"{rows[0].difference.verdict} ({rows[0].case})"
    usual = max(_VERDICTS, key=lambda verdict: len(cases[verdict]))
    parts: list[str] = []
    for verdict, names in cases.items():
        if not names:
            continue
        number = f"all {len(rows)}" if len(names) == len(rows) else str(len(names))
        of = "" if parts or len(names) == len(rows) else f" of {len(rows)}"
        named = f" ({'; '.join(names)})" if verdict == "reversed" or verdict != usual else ""
        parts.append(f"{verdict} in {number}{of}{named}")
    return ", ".join(parts)


def _data(result: StudyResult, rows: Sequence[Judged]) -> list[str]:
    """Names of the data of these cases, if all cases begin with some, or else of all the study's."""
    begins = {row.case.partition(",")[0] for row in rows}
    used = [name for name in result.data if name in begins or not begins <= set(result.data)]
    return [Path(result.data[name]["given"]).stem for name in used]


def _first_word(name: str) -> str:
    word = re.match(r"\w+", name)
    return word[0] if word else name


if __name__ == "__main__":
    update_readme(sys.argv[1], sys.argv[2])
