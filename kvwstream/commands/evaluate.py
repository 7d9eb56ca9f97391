"""`kvwstream evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvwstream.commands.shown import quiet_transformers
from kvwstream.options import (
    Accessor,
    Accessors,
    Config,
    Device,
    Dtype,
    Format,
    Formats,
    LogJson,
    Power,
    Shape,
    Shapes,
    Split,
    Task,
    Threshold,
    Until,
)


def evaluate(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Checkpoint folder, or a hub id.")
    ] = None,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Questions about what is to be forgotten.")
    ] = None,
    paraphrases: Annotated[str | None, typer.Option(help="The same facts in other words.")] = None,
    reversed: Annotated[str | None, typer.Option(help="The same facts asked backwards.")] = None,
    neighbours: Annotated[
        str | None, typer.Option(help="Facts of the same kind that should stay.")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="General questions, some of them text only.")
    ] = None,
    retain: Annotated[
        str | None, typer.Option(help="Answers for perplexity, and to relearn from.")
    ] = None,
    deployment: Annotated[
        bool, typer.Option("--deployment", help="Also quantised to 8 and 4 bits, and relearned.")
    ] = False,
    holdout: Annotated[
        str | None, typer.Option(help="Never trained on: membership inference.")
    ] = None,
    oracle: Annotated[
        Path | None, typer.Option(help="An oracle's answers (--out): forget quality.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines, one per example.")] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A.jsonl B.jsonl", help="Show what flips between two --out."),
    ] = None,
    statistics: Annotated[str | None, typer.Option(help="As if weakened by these.")] = None,
    gamma: Annotated[float | None, typer.Option(help="Strength, with --statistics.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, with --statistics.")] = None,
    power: Power = 1.0,
    threshold: Threshold = 0.0,
    accessor: Accessor = Accessors.record,
    until: Until = None,
    shape: Shape = Shapes.paper,
    gates: Annotated[
        Path | None, typer.Option(help="As if weakened by a gates file or an adapter.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer.")] = 50,
    dtype: Dtype = "auto",
    device: Device = "auto",
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many of each.")
    ] = None,
    config: Config = None,
    split: Split = "train",
    format: Format = Formats.auto,
    task: Task = None,
    log_json: LogJson = False,
) -> None:
    """Ask MODEL the questions of DATA; with --statistics or --gates, as if it were weakened.

    The views beside DATA are files or folders of their own, to which --format, --task, --config and
    --split do not apply; PATH#TASK chooses among a benchmark's questions. A view that is not given
    is called missing.
    """
    from kvwstream.errors import OptionError

    if compare:
        from kvwstream.commands.evaluation import show_comparison
        from kvwstream.pipelines.compare import compare as compared

        origins = {name: context.get_parameter_source(name) for name in context.params}
        given = [name for name, how in origins.items() if how and how.name == "COMMANDLINE"]
        if others := [name.replace("_", "-") for name in given if name != "compare"]:
            raise OptionError(
                f"--compare reads two files and asks no model: leave out {', '.join(others)}"
            )
        show_comparison(compared(*compare))
        return
    if model is None or data is None:
        raise OptionError("give MODEL and DATA, or two files to --compare")

    from kvwstream.checkpoint import resolve_model
    from kvwstream.commands.evaluation import show_report
    from kvwstream.pipelines import views
    from kvwstream.pipelines.compare import read_truth_ratios
    from kvwstream.pipelines.weakened import choose_weakening
    from kvwstream.progress import progress_for
    from kvwstream.readers import read_examples, read_questions
    from kvwstream.strength import Strength

    quiet_transformers()
    options = {"power": power, "threshold": threshold, "accessor": accessor.value, "until": until}
    strength = Strength.parse(statistics, gamma, layers, **options, shape=shape.value)
    sources = {"paraphrases": paraphrases, "reversed": reversed, "neighbours": neighbours}
    sources |= {"general": general, "retain": retain, "holdout": holdout}
    examples = {
        view: read_questions(source)[:limit]
        for view, source in sources.items()
        if source is not None
    }
    forget = read_examples(data, format=format.value, task=task, config=config, split=split)
    examples = {"forget": forget[:limit], **examples}
    ratios = read_truth_ratios(oracle, examples["forget"]) if oracle else []
    folder = resolve_model(model)
    what = views.Task(
        model=folder,
        views=examples,
        weakening=choose_weakening(folder, statistics, strength, gates),
        deployment=deployment,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
    )
    report = views.evaluate_views(what, out=out, progress=progress_for(log_json=log_json))
    show_report(report, what.missing(), ratios)
