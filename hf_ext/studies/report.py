"""A study's results as markdown and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from hf_ext._files import write_atomically
from hf_ext._reports import markdown_table, spread
from hf_ext.hub_cards.plots import BASELINE, METHOD, WARNING, new_figure, save_figure
from hf_ext.studies.results import Judged, StudyResult, SystemResult
from hf_ext.studies.statistics import Difference
from hf_ext.studies.study import Case, Detail, Study

REPORT_FILE, PICTURE_FILE = "report.md", "differences.png"
_COLOURS = {"shown": METHOD, "not shown": BASELINE, "reversed": WARNING}


def write_report(study: Study, result: StudyResult, folder: Path) -> Path:
    """Write `report.md` and `differences.png` into a folder; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    plot_differences(study, result, folder / PICTURE_FILE)
    path = folder / REPORT_FILE
    write_atomically(path, report(study, result))
    return path


def report(study: Study, result: StudyResult) -> str:
    """The whole report as markdown."""
    cases = [case for case in study.cases if case.name in result.cases]
    parts = [f"# {study.title}", f"Study `{study.name}`. {study.question}"]
    if result.quick:
        parts.append("**A quick run: it shows that everything works, not how well anything works.**")
    parts += [
        "## Verdicts",
        f"{_title(study)}, paired over {_seeds(result)}, ± half of its 95 % "
        "interval (Student's t). *Shown*: the interval lies on the method's side of zero; *reversed*: on the "
        "baseline's. Intervals are not corrected for the number of comparisons.",
        verdict_table(result),
        *(part for detail in study.details for part in _judged_detail(result, detail)),
        f"![Paired differences with 95 % intervals]({PICTURE_FILE})",
        "## Scores",
        f"{study.metric[0].upper()}{study.metric[1:]}: mean ± standard deviation over {_seeds(result)}.",
        score_table(study, result),
        *_excluded(study, cases),
    ]
    parts += [part for case in cases for part in _details(study, case, result.cases[case.name])]
    parts += ["## Hyper-parameters", _hyper_parameters(study, cases, result)]
    if study.protocol:
        parts += ["## Protocol", study.protocol]
    parts += ["## Data", _data(study, result)]
    parts += ["## Environment", "\n".join(f"- {name}: {value}" for name, value in result.environment.items())]
    if result.command:
        parts += ["## Again", f"```bash\n{result.command}\n```"]
    return "\n\n".join(parts) + "\n"


def verdict_table(result: StudyResult, detail: str | None = None) -> str:
    """Comparisons by cases, in the metric or in a detail, as a markdown table.

    The results are enough for it: no method is imported.
    """
    judged = [row for row in result.judged if row.detail == detail]
    pairs = list(dict.fromkeys((row.method, row.baseline) for row in judged))
    differences = {(row.case, row.method, row.baseline): row.difference for row in judged}
    rows = [
        [f"{method} vs {baseline}", *(_difference(differences.get((case, method, baseline))) for case in result.cases)]
        for method, baseline in pairs
    ]
    return markdown_table([result.name, *result.cases], rows)


def score_table(study: Study, result: StudyResult) -> str:
    """Systems by cases, as a markdown table."""
    cases = [case.name for case in study.cases if case.name in result.cases]
    rows = []
    for system in study.systems:
        name = f"**{system.name}**" if system.is_method else system.name
        rows.append([name, *(_score(result.cases[case].get(system.name)) for case in cases)])
    return markdown_table([study.name, *cases], rows)


def plot_differences(study: Study, result: StudyResult, path: Path) -> None:
    """Every comparison in the study's metric as a point with its interval, one panel per case."""
    judged = [row for row in result.judged if row.detail is None]
    cases = list(dict.fromkeys(row.case for row in judged))
    most = max((sum(row.case == case for row in judged) for case in cases), default=1)
    figure, panels = new_figure(9, (0.32 * most + 0.9) * max(1, len(cases)), rows=max(1, len(cases)))
    for case, axes in zip(cases, panels, strict=False):
        _panel(axes, case, [row for row in judged if row.case == case])
    title = _title(study)
    panels[-1].set_xlabel(title[0].lower() + title[1:], parse_math=False)
    save_figure(figure, path, dpi=120)


def _panel(axes: Axes, case: str, rows: Sequence[Judged]) -> None:
    axes.axvline(0, color="#444444", linewidth=0.8)
    for position, row in enumerate(rows):
        difference = row.difference
        colour = _COLOURS[difference.verdict]
        if not math.isnan(difference.low):
            axes.plot([difference.low, difference.high], [position, position], color=colour, linewidth=2)
        axes.plot([difference.mean], [position], "o", color=colour)
    axes.set_yticks(range(len(rows)), [f"{row.method} vs {row.baseline}" for row in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_title(case, loc="left", parse_math=False)


def _title(study: Study) -> str:
    """The difference in words; a positive number is always in the method's favour."""
    return f"Difference in {study.metric}, {_order(study.greater_is_better)}"


def _order(greater_is_better: bool) -> str:
    return "method minus baseline" if greater_is_better else "baseline minus method (less is better)"


def _judged_detail(result: StudyResult, detail: Detail) -> list[str]:
    name = detail.name[0].upper() + detail.name[1:]
    return [f"**{name}**, {_order(detail.greater_is_better)}:", verdict_table(result, detail.name)]


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    if math.isnan(difference.mean):
        return "diverged"
    if math.isnan(difference.low):
        return f"{difference.mean:+.3f}, {difference.verdict}"
    half = (difference.high - difference.low) / 2  # the interval is symmetric
    words = f"{difference.mean:+.3f} ± {half:.3f} {difference.verdict}"
    return f"**{words}**" if difference.verdict == "shown" else words


def _score(system: SystemResult | None) -> str:
    if system is None:
        return "-"
    if diverged := sum(map(math.isnan, system.test)):
        return f"{diverged} of {len(system.test)} diverged"
    return _spread(system.test)


def _spread(values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _excluded(study: Study, cases: Sequence[Case]) -> list[str]:
    used = {case.data for case in cases}
    lines = [
        f"- {system.name} was not run on `{data}`: {reason}."
        for system in study.systems
        for data, reason in system.excluded.items()
        if data in used
    ]
    return ["\n".join(lines)] if lines else []


def _details(study: Study, case: Case, systems: dict[str, SystemResult]) -> list[str]:
    names = list(dict.fromkeys(name for system in systems.values() for name in system.details))
    if not names:
        return []
    rows = [[name, *(_known(system.details.get(detail)) for detail in names)] for name, system in systems.items()]
    return [
        f"### {case.name}",
        f"Test set of {study.data[case.data].about}.",
        markdown_table([study.name, *names], rows),
    ]


def _known(values: Sequence[float | None] | None) -> str:
    numbers = [value for value in values or () if value is not None]
    return _spread(numbers) if numbers else "-"


def _hyper_parameters(study: Study, cases: Sequence[Case], result: StudyResult) -> str:
    rows = []
    for case in cases:
        for name, system in result.cases[case.name].items():
            tried = ", ".join(
                f"{_settings(row['hyper_parameters'])}: {row['validation']:.3f}" for row in system.tuning
            )
            rows.append([case.name, name, _settings(system.hyper_parameters), tried or "-"])
    header = ["case", study.name, "chosen", "validation scores of all that were tried"]
    words = (
        "Chosen on validation data, on seeds that are not among the reported ones."
        if any(system.tuning for systems in result.cases.values() for system in systems.values())
        else "Not chosen: of several values the one in the middle was taken."
    )
    return f"{words}\n\n{markdown_table(header, rows)}"


def _settings(values: dict[str, object]) -> str:
    return (
        ", ".join(
            f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        or "-"
    )


def _data(study: Study, result: StudyResult) -> str:
    lines = []
    for name, facts in result.data.items():
        rows = ", ".join(f"{split} {count}" for split, count in facts["rows"].items())
        lines.append(
            f"- `{name}`: {study.data[name].about}. Given: `{facts['given']}`; rows: {rows}; SHA-256 of the "
            f"rows `{facts['sha256']}`"
            + (f", of the file `{facts['file_sha256']}`" if facts.get("file_sha256") else "")
        )
        if study.data[name].needs:
            lines[-1] += f". Columns: {study.data[name].needs}"
        if study.data[name].origin:
            lines[-1] += f". From: {study.data[name].origin}"
    lines += [f"- {case} was not run, {reason}" for case, reason in result.skipped.items()]
    return "\n".join(lines)


def _seeds(result: StudyResult) -> str:
    return f"{len(result.seeds)} seed{'s' if len(result.seeds) > 1 else ''}"
