"""The same comparison on the paper's own benchmarks, as commands for a machine with a GPU.

Vanilla and oracle are fine-tuned as the paper's were (`benchmarks.methods.oracle`): their weights
are not published. Folds are made by person (`benchmarks.paper.folds`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One benchmark on one model."""

    title: str
    download: tuple[str, ...]
    base: str
    folder: str
    learnt: tuple[str, str]
    """What vanilla and oracle are fine-tuned on."""
    retain: str
    forget: str
    training: str
    """The readers' task for what is collected."""
    key: str
    """Column that names the person: folds are made by it."""
    tests: tuple[tuple[str, str], ...]
    """(data, task) that are asked: forget and retain, in folds, then the further columns."""
    gammas: str
    """Five steps of the range that the paper searches (Appendix B)."""
    layers: str
    """Starts in the first and ends in the last eighth of the layers."""
    name: str


CLEAR = Recipe(
    title="CLEAR, forget 5 %, on Qwen2-VL-2B (Table 2)",
    download=(
        "pip install torchvision",
        "hf download therem/CLEAR --repo-type dataset --local-dir data/CLEAR",
    ),
    base="Qwen/Qwen2-VL-2B-Instruct",
    folder="data/CLEAR",
    learnt=("full+tofu", "retain95+tofu"),
    retain="retain95",
    forget="forget05",
    training="caption",
    key="name",
    tests=(
        ("forget05_perturbed", "name"),
        ("retain_perturbed", "name"),
        ("real_faces", "open"),
        ("real_world", "open"),
    ),
    gammas="0.01 0.015 0.02 0.025 0.03",
    layers="1:25 0:27 3:24",
    name="clear",
)
MLLMU = Recipe(
    title="MLLMU-Bench, forget 5 %, on LLaVA-1.5-7B (Table 1)",
    download=("hf download MLLMMU/MLLMU-Bench --repo-type dataset --local-dir data/MLLMU",),
    base="llava-hf/llava-1.5-7b-hf",
    folder="data/MLLMU",
    learnt=("Full_Set", "retain_95"),
    retain="retain_95",
    forget="forget_5",
    training="questions",
    key="ID",
    tests=(("forget_5", "generation"), ("retain_95", "generation"), ("Retain_Set", "generation")),
    gammas="0.001 0.002 0.003 0.004 0.005",
    layers="1:29 0:31 3:28",
    name="mllmu",
)
RECIPES = (CLEAR, MLLMU)


def commands(recipe: Recipe) -> list[str]:
    """Everything in order; `kvwstream` does all but the download and the fine-tuning."""
    name, folder = recipe.name, recipe.folder
    vanilla = f"models/{name}-vanilla"
    learn = "python -m benchmarks.methods.oracle"
    lines = list(recipe.download)
    for kind, data in zip(("vanilla", "oracle"), recipe.learnt, strict=True):
        lines.append(
            f"{learn} {recipe.base} '{folder}/{data}' models/{name}-{kind} --task {recipe.training}"
        )
    folded = [data for data, _ in recipe.tests[:2]]
    lines += [f"python -m benchmarks.paper.folds {folder}/{d} --by {recipe.key}" for d in folded]
    for kind, data, size in (("retain", recipe.retain, 8), ("forget", recipe.forget, 1)):
        lines.append(
            f"kvwstream collect {vanilla} {folder}/{data} stores/{name}-{kind}.zarr "
            f"--task {recipe.training} --batch-size {size} --moments abs,signed,square"
        )
    statistics = f"stores/{name}-statistics.zarr"
    lines.append(
        f"kvwstream reduce --retain stores/{name}-retain.zarr "
        f"--forget stores/{name}-forget.zarr {statistics}"
    )
    tests = [(f"{d}_{fold}", task) for d, task in recipe.tests[:2] for fold in (1, 2)]
    tests += list(recipe.tests[2:])
    for kind in ("vanilla", "oracle"):
        for data, task in tests:
            lines.append(
                f"kvwstream evaluate models/{name}-{kind} {folder}/{data} --task {task} "
                f"--out answers/{name}-{kind}-{data}.jsonl"
            )
    lines.append(f"for gamma in {recipe.gammas}; do for layers in {recipe.layers}; do")
    for data, task in tests:
        lines.append(
            f"kvwstream evaluate {vanilla} {folder}/{data} --task {task} "
            f"--statistics {statistics} --gamma $gamma --layers $layers "
            f"--out answers/{name}-$gamma-$layers-{data}.jsonl"
        )
    lines.append("done; done")
    lines.append("# GAMMA and LAYERS: chosen on fold 1 by the rule above, reported on fold 2")
    lines.append(
        f"kvwstream apply {vanilla} {statistics} models/{name}-weakened "
        "--gamma ${GAMMA:?} --layers ${LAYERS:?}"
    )
    lines.append(
        f"kvwstream audit stores/{name}-retain.zarr stores/{name}-forget.zarr {statistics} "
        f"models/{name}-weakened --base {vanilla} --statistics {statistics}"
    )
    return lines


def recipe_text() -> str:
    """Both recipes as Markdown."""
    blocks = []
    for recipe in RECIPES:
        blocks.append(f"### {recipe.title}\n\n```sh\n" + "\n".join(commands(recipe)) + "\n```")
    return "\n\n".join(blocks)
