"""The same comparison on the paper's own benchmarks, as commands for a machine with a GPU.

Vanilla and oracle are fine-tuned first (`benchmarks.methods.oracle`): their weights are not
published. Folds are made by person (`benchmarks.paper.folds`). Then `benchmarks.paper` makes the
tables, and `kvwstream` alone does what a user does: collect, reduce, sweep, apply, evaluate, audit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One benchmark on one model."""

    name: str
    title: str
    download: tuple[str, ...]
    base: str
    folder: str
    learnt: tuple[str, str]
    """What vanilla and oracle are fine-tuned on."""
    training: str
    """Options of the fine-tuning: the readers' task, and where they differ rate and epochs."""
    retain: str
    forget: str
    task: str
    """The readers' task for what is collected."""
    key: str
    """Column that names the person: folds are made by it."""
    asked: tuple[str, str]
    """Questions about what is forgotten and what stays, with their task behind a #."""
    general: str
    gammas: str
    """The range that the paper searches (Appendix B)."""
    score: str


CLEAR = Recipe(
    name="clear",
    title="CLEAR, forget 5 %, on Qwen2-VL-2B (Table 2)",
    download=(
        "pip install torchvision",
        "hf download therem/CLEAR --repo-type dataset --local-dir data/CLEAR",
    ),
    base="Qwen/Qwen2-VL-2B-Instruct",
    folder="data/CLEAR",
    learnt=("full+tofu", "retain95+tofu"),
    training="--task caption",
    retain="retain95",
    forget="forget05",
    task="caption",
    key="name",
    asked=("forget05_perturbed#name", "retain_perturbed#name"),
    general="real_world",
    gammas="0.01:0.03",
    score="correct",
)
MLLMU = Recipe(
    name="mllmu",
    title="MLLMU-Bench, forget 5 %, on LLaVA-1.5-7B (Table 1)",
    download=("hf download MLLMMU/MLLMU-Bench --repo-type dataset --local-dir data/MLLMU",),
    base="llava-hf/llava-1.5-7b-hf",
    folder="data/MLLMU",
    learnt=("Full_Set", "retain_95"),
    training="--task questions --rate 2e-5 --epochs 5",
    retain="retain_95",
    forget="forget_5",
    task="questions",
    key="ID",
    asked=("forget_5#generation", "retain_95#generation"),
    general="Retain_Set#generation",
    gammas="0.001:0.005",
    score="rougeL_f",
)
RECIPES = (CLEAR, MLLMU)


def commands(recipe: Recipe) -> list[str]:
    """Everything in order, each a line of a shell."""
    name, folder = recipe.name, recipe.folder
    vanilla, oracle = f"models/{name}-vanilla", f"models/{name}-oracle"
    lines = list(recipe.download)
    for model, data in zip((vanilla, oracle), recipe.learnt, strict=True):
        learn = f"python -m benchmarks.methods.oracle {recipe.base} '{folder}/{data}' {model}"
        lines.append(f"{learn} {recipe.training}")
    for asked in recipe.asked:
        place = f"{folder}/{asked.partition('#')[0]}"
        lines.append(f"python -m benchmarks.paper.folds {place} --by {recipe.key}")
    lines += [
        f"python -m benchmarks.paper {name} --data {folder} --vanilla {vanilla} --oracle {oracle} "
        "--percent 5",
        "python -m benchmarks.paper report",
    ]
    stores = {kind: f"stores/{name}-{kind}.zarr" for kind in ("retain", "forget", "statistics")}
    for kind, data, size in (("retain", recipe.retain, 8), ("forget", recipe.forget, 1)):
        lines.append(
            f"kvwstream collect {vanilla} {folder}/{data} {stores[kind]} "
            f"--task {recipe.task} --batch-size {size}"
        )
    forget, retain = (f"'{folder}/{asked}'" for asked in recipe.asked)
    lines += [
        f"kvwstream reduce --retain {stores['retain']} --forget {stores['forget']} "
        f"{stores['statistics']}",
        f"kvwstream sweep {vanilla} --statistics {stores['statistics']} --forget {forget} "
        f"--retain {retain} --oracle {oracle} --gammas {recipe.gammas} --score {recipe.score} "
        f"--trials 48 --max-new-tokens 50 --out {name}-sweep.jsonl --plot {name}-sweep.svg "
        f"| tee {name}-sweep.txt",
        f'eval "$(tail -n 1 {name}-sweep.txt)"  # the chosen kvwstream apply',
        f"mv weakened models/{name}-weakened",
    ]
    data, _, task = recipe.asked[0].partition("#")
    for kind in ("vanilla", "weakened"):
        lines.append(
            f"kvwstream evaluate models/{name}-{kind} {folder}/{data} --task {task} "
            f"--neighbours {retain} --general '{folder}/{recipe.general}' "
            f"--out answers/{name}-{kind}.jsonl"
        )
    lines.append(
        f"kvwstream audit {' '.join(stores.values())} models/{name}-weakened "
        f"--base {vanilla} --statistics {stores['statistics']}"
    )
    return lines


def recipe_text() -> str:
    """Both recipes as Markdown."""
    blocks = []
    for recipe in RECIPES:
        blocks.append(f"### {recipe.title}\n\n```sh\n" + "\n".join(commands(recipe)) + "\n```")
    return "\n\n".join(blocks)
