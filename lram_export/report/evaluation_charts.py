"""The charts of an evaluation: normalized scores, all domains in one chart, and one chart per domain."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lram_export.report.charts import Chart, as_svg, colour, marker
from lram_export.rollouts.scores import DomainScore, Scores

NAMED = 60
"""Most tasks of a chart that stand there with their names."""


def evaluation_charts(scores: Scores) -> list[Chart]:
    """First the domains, then the tasks of each; domains without a scored task have no chart."""
    scored = [score for score in scores.domains if score.iqm is not None]
    if not scored:
        return []
    names = list(dict.fromkeys(score.domain for score in scored))
    policies = list(dict.fromkeys(score.policy for score in scored))
    charts = [_domains(scored, names, policies)]
    for name in names:
        if name in scores.sources:  # a domain, not all of them
            charts.append(_tasks(name, [score for score in scored if score.domain == name], policies))
    return charts


def _domains(scored: Sequence[DomainScore], names: list[str], policies: list[str]) -> Chart:
    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for number, policy in enumerate(policies):
            own = [score for score in scored if score.policy == policy and score.iqm is not None]
            places = [_place(names.index(score.domain), number, len(policies)) for score in own]
            values = [score.iqm for score in own if score.iqm is not None]
            low = [v.value - v.low if v.low is not None else 0.0 for v in values]
            high = [v.high - v.value if v.high is not None else 0.0 for v in values]
            axes.errorbar(
                [v.value for v in values], places, xerr=[low, high], fmt=marker(number), color=colour(number),
                capsize=3, label=policy,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        _scale(axes)
        axes.set_xlabel("interquartile mean of the tasks' normalized scores")
        if len(policies) > 1:
            figure.legend(loc="outside lower center", ncols=2)

    height = 1.3 + 0.28 * len(names) * max(1, len(policies)) + (0.3 if len(policies) > 1 else 0)
    return Chart(
        "domains",
        "Domains",
        "The mean of the middle half of a domain's tasks, with its 95% interval over episodes. 0 is a random policy, "
        "1 what is called an expert in that domain (see the sources below). Where intervals overlap, these episodes do "
        "not tell the policies apart.",
        as_svg("domains", "Domains", policies, height, draw),
    )


def _tasks(name: str, scored: Sequence[DomainScore], policies: list[str]) -> Chart:
    first = sorted(scored[0].tasks, key=lambda task: task.value)
    order = {task.environment: place for place, task in enumerate(first)}
    named = len(order) <= NAMED

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for score in scored:
            number = policies.index(score.policy)
            values = {task.environment: task.value for task in score.tasks}
            found = [e for e in order if e in values]
            axes.plot(
                [values[e] for e in found],
                [order[e] for e in found],
                marker(number),
                color=colour(number),
                markersize=(5 if named else 3) + 2.5 * number,  # around those of the policies before
                fillstyle="none" if number else "full",
                label=score.policy,
            )
        if named:
            axes.set_yticks(range(len(order)), [e.partition("/")[2] for e in order], fontsize=8.5)
        else:
            axes.set_ylabel("tasks, by score")
        axes.set_ylim(-0.7, len(order) - 0.3)
        _scale(axes)
        axes.set_xlabel("normalized score")
        if len(scored) > 1:
            figure.legend(loc="outside lower center", ncols=2)

    height = (1.3 + 0.19 * len(order) if named else 4.0) + (0.3 if len(scored) > 1 else 0)
    return Chart(
        f"tasks-{name}",
        f"Tasks of {name}",
        f"Every mark is a task: the mean over its episodes, {len(order)} tasks in the order of {scored[0].policy}'s "
        f"scores. A mark far from the others of its row is a task that this policy plays differently.",
        as_svg(f"tasks-{name}", f"Tasks of {name}", policies, height, draw),
    )


def _place(row: int, number: int, policies: int) -> float:
    return row + 0.6 * ((number + 0.5) / policies - 0.5)


def _scale(axes: Axes) -> None:
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -0.05), max(high, 1.05))
    for value in (0, 1):
        axes.axvline(value, color="0.55", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
