"""What `evaluate` shows: tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from kvwstream.pipelines.compare import Comparison
from kvwstream.pipelines.report import AS_IS, Report
from kvwstream.pipelines.views import ASKED

SCORES = {
    "containment": "containment (CLEAR)",
    "option_letter": "option letter",
    "cloze": "cloze",
    "rouge1_recall": "ROUGE-1 recall",
    "rouge2_recall": "ROUGE-2 recall",
    "rougeL_recall": "ROUGE-L recall",
    "rouge1_f": "ROUGE-1 F",
    "rouge2_f": "ROUGE-2 F",
    "rougeL_f": "ROUGE-L F",
    "bleu": "BLEU",
    "probability": "answer probability",
    "normalised_probability": "among the options",
    "exact_memorisation": "exact memorisation",
    "extraction_strength": "extraction strength",
}
"""What is shown of each view, and how it is called."""

TRUTHS = {"truth ratio": "truth_ratio", "truth ratio (CLEAR)": "truth_ratio_geometric"}


def show_report(report: Report, missing: Sequence[str], oracle: Sequence[float]) -> None:
    """Accuracies by state, scores by view, what is made of them, and what was not looked at."""
    console = Console(width=80, highlight=False, markup=False)
    console.print(_accuracies(report))
    console.print(_scores(report))
    for line in _summary(report, oracle):
        console.print(line, soft_wrap=True)
    for line in missing:
        console.print(f"missing: {line}", soft_wrap=True)


def _accuracies(report: Report) -> Table:
    table = Table(title="accuracy", title_style="bold")
    table.add_column("view")
    for name in ("asked", *report.asked):
        table.add_column(name, justify="right")
    for view in filter(report.views.__contains__, ASKED):
        values = [f"{found[view].accuracy:.3f}" for found in report.asked.values()]
        table.add_row(view, str(len(report.views[view])), *values)
    texts = [report.text_only(state) for state in report.asked]
    if texts[0] and len(texts[0].judgements) < len(report.views["general"]):
        values = [f"{text.accuracy:.3f}" for text in texts if text]
        table.add_row("general, text only", str(len(texts[0].judgements)), *values)
    values = [f"{value:.2f}" for state in report.asked if (value := report.perplexity(state))]
    if values:
        asked = len(report.views["retain"]) - len(report.taught)
        table.add_row("perplexity, retain", str(asked), *values)
    return table


def _scores(report: Report) -> Table:
    table = Table(title="scores of the model as it is", title_style="bold")
    table.add_column("score")
    views = [view for view in ASKED if view in report.views]
    for view in views:
        table.add_column(view, justify="right")
    evaluations = report.asked[AS_IS]
    rows = {text: [evaluations[v].mean(name) for v in views] for name, text in SCORES.items()}
    for text, name in TRUTHS.items():
        rows[text] = [report.truth(AS_IS, view, name) for view in views]
    for text, values in rows.items():
        if any(value is not None for value in values):
            table.add_row(text, *("" if value is None else f"{value:.3f}" for value in values))
    return table


def _summary(report: Report, oracle: Sequence[float]) -> list[str]:
    lines = []
    if (utility := report.utility(AS_IS)) is not None:
        lines.append(f"utility (harmonic mean over neighbours and general): {utility:.3f}")
    if distance := report.forget_quality(AS_IS, oracle):
        lines.append(
            f"forget quality (KS against the oracle): p = {distance.p_value:.3g}, "
            f"D = {distance.statistic:.3f}"
        )
    areas = [report.membership(AS_IS, score) for score in ("loss", "min_k")]
    if areas[0] is not None:
        lines.append(f"membership inference, AUC: loss {areas[0]:.3f}, Min-K {areas[1]:.3f}")
    return lines


def show_comparison(found: Comparison) -> None:
    """How many questions flipped, and each of them with both responses."""
    console = Console(width=80, highlight=False, markup=False)
    table = Table(title="first against second", title_style="bold")
    table.add_column("view")
    for name in ("both right", "lost", "gained", "both wrong"):
        table.add_column(name, justify="right")
    for (state, view), counts in found.counts().items():
        name = view if state in ("", AS_IS) else f"{view}, {state}"
        table.add_row(name or "questions", *map(str, counts))
    console.print(table)
    for flip in found.flips:
        where = ", ".join(filter(None, (flip.view, flip.state)))
        console.print(f"\n{'lost' if flip.lost else 'gained'}: {flip.id} ({where})")
        console.print(f"  {flip.question}")
        console.print(f"  first:  {flip.first}")
        console.print(f"  second: {flip.second}")
    if any(found.alone):
        first, second = found.alone
        console.print(
            f"\nnot compared: {first} questions of the first alone, {second} of the second"
        )
