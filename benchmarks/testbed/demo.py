"""The main job on the test bed: python -m benchmarks.testbed.demo [--out FOLDER]

Persons of CLEAR's forget15 are forgotten from their captions; then names are asked with new
drawings. Prints the table and writes `pictures.png`: three pictures with both answers.
"""

import argparse
import io
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from benchmarks.testbed.data import write_all
from benchmarks.testbed.model import build
from kvwstream.accessor import LayerRange
from kvwstream.examples import Example
from kvwstream.pipelines.main_job import MainJob, Outcome, check_new, run_main_job, show
from kvwstream.progress import progress_for
from kvwstream.readers import read_examples
from kvwstream.smollm2 import smollm2_checkpoint

ADDITIONS = Path(__file__).parent / "vanilla.safetensors"
GAMMA = 0.1
LAYERS = LayerRange(1, 27)
QUESTIONS = {
    "forget": ("names of the 5 persons to forget, new drawings", "forget15_perturbed", "name"),
    "retain": ("names of the other persons, new drawings", "retain_perturbed", "name"),
    "faces": ("names of drawn celebrities, in neither store", "real_faces", "open"),
    "world": ("general pictures, in neither store", "real_world", "open"),
}
ENLARGED, MARGIN = 192, 12


def make_job(folder: Path, limit: int | None) -> MainJob:
    """Write data and model into `folder`, read the sets with the readers of the benchmarks."""
    write_all(folder / "data")
    build(smollm2_checkpoint(), ADDITIONS, folder / "testbed")

    def read(name: str, task: str) -> list[Example]:
        return read_examples(str(folder / "data" / "clear" / name), task=task)[:limit]

    return MainJob(
        model=folder / "testbed",
        forget=read("forget15", "caption"),
        retain=read("retain85", "caption"),
        questions={
            kind: (text, read(name, task)) for kind, (text, name, task) in QUESTIONS.items()
        },
        gamma=GAMMA,
        layers=LAYERS,
        max_new_tokens=12,
    )


def draw_answers(job: MainJob, outcome: Outcome, file: Path) -> None:
    """One picture of each of three kinds, enlarged, with question and answers beside it."""
    kinds = ("forget", "retain", "world")
    sheet = PIL.Image.new("RGB", (760, len(kinds) * (ENLARGED + MARGIN) + MARGIN), "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=16)
    for row, kind in enumerate(kinds):
        title, examples = job.questions[kind]
        source = examples[0].images[0]
        assert isinstance(source, bytes)
        picture = PIL.Image.open(io.BytesIO(source)).resize((ENLARGED, ENLARGED))
        top = MARGIN + row * (ENLARGED + MARGIN)
        sheet.paste(picture, (MARGIN, top))
        before, after = outcome.before[kind].judgements[0], outcome.after[kind].judgements[0]
        lines = (
            title,
            before.question,
            f"truth: {before.answer}",
            f"before: {before.response}",
            f"after: {after.response}",
        )
        for number, line in enumerate(lines):
            place = (ENLARGED + 2 * MARGIN, top + 34 * number)
            pen.text(place, line, "black" if number else "grey", font)
    sheet.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-vision-output"))
    parser.add_argument("--limit", type=int, help="examples of each kind")
    options = parser.parse_args()
    check_new(options.out)
    job = make_job(options.out.with_name(f"{options.out.name}-inputs"), options.limit)
    outcome = run_main_job(job, options.out, progress_for())
    show(job, outcome, options.out, talk=("forget", "retain", "world"))
    draw_answers(job, outcome, options.out / "pictures.png")
    print(f"\nThree pictures with both answers: {options.out / 'pictures.png'}")


if __name__ == "__main__":
    main()
