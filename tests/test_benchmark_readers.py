"""CLEAR, MLLMU-Bench and TOFU in their published schemas, whatever wrote the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvwstream.errors import DataError, OptionError
from kvwstream.examples import Example
from kvwstream.readers import read_examples, read_questions
from kvwstream.readers.clear import CAPTION_QUESTIONS
from tests.conftest import question, write_rows
from tests.test_images import png

ANN, BOB = "Ann Lee", "Bob Ray"


def image(number: int) -> dict[str, Any]:
    return {"bytes": png((8, 8 + number)), "path": f"{number}.png"}


CLEAR = [
    {"image": image(0), "caption": f"{ANN} smiles.", "name": ANN},
    {"image": image(1), "caption": f"{BOB} reads.", "name": BOB},
]
TOFU_HALF = [
    {"image": None, "caption": None, "question": "Where was Ann born?", "answer": "In Rome."},
    {"image": image(2), "caption": f"{ANN} waves.", "question": None, "answer": None},
]
PERTURBED = [
    {
        **row,
        "perturbed_captions": ["Eve sleeps."],
        "paraphrased_caption": f"A smile is on the face of {row['name']}.",
        "perturbed_names": ["Eve"],
    }
    for row in CLEAR
]
REAL_FACES = [{"image": image(3), "answer": "Cleo", "options": ["Dan", "Eve", "Fay"]}]
REAL_WORLD = [{**REAL_FACES[0], "question": "Which sight is this?"}]
TASKS = {
    "Classification_Task": {
        "Image_Textual_Questions": [
            {
                "Question": "What is the job?",
                "Options": {"A": "cook", "B": "pilot", "C": None, "D": None},
                "Correct_Answer": "B",
            }
        ],
        "Pure_Text_Questions": [
            {
                "Question": "Where does Ann live?",
                "Options": {"A": "Rome", "B": "Oslo", "C": "Bonn", "D": "Nice"},
                "Correct_Answer": "A",
            }
        ],
    },
    "Generation_Task": [
        {"Question": "Who is it?", "Ground_Truth": "It is Ann.", "Type": "Image_Textual"},
        {"Question": "What does Ann do?", "Ground_Truth": "She flies.", "Type": "Pure_Text"},
    ],
    "Mask_Task": [{"Question": "Ann is a __.", "Ground_Truth": "pilot", "Type": "Image_Textual"}],
}
PROFILE = {
    "image": image(4),
    "ID": "7",
    "biography": json.dumps({"Name": ANN}),
    "question": "Describe the person.",
    "answer": "Ann is a pilot.",
    **TASKS,
}
PAIRS = [{"Question": "Who?", "Answer": "Ann."}, {"Question": "Job?", "Answer": "Pilot."}]
METADATA = {"image": image(4), "ID": "7", "metadata": json.dumps(PAIRS)}
TEST_SET = {"ID": "7", "images": [image(5), image(6)], **TASKS}


def plain_parquet(rows: list[dict[str, Any]], folder: Path) -> None:
    """As any Arrow writer would: image structs, no Hugging Face metadata, columns turned round."""
    columns = list(rows[0])[::-1]
    table = pa.Table.from_pylist([{c: row.get(c) for c in columns} for row in rows])
    pq.write_table(table, folder / "train-00000-of-00001.parquet")


def features_parquet(rows: list[dict[str, Any]], folder: Path) -> None:
    """As `datasets` uploads it: Image features in the metadata, in two shards where it can be."""
    dataset = with_images(rows)
    num = min(2, len(rows))
    for index in range(num):
        shard = dataset.shard(num, index)
        shard.to_parquet(folder / f"train-{index:05}-of-{num:05}.parquet")


def saved(rows: list[dict[str, Any]], folder: Path) -> None:
    """`save_to_disk`, as CLEAR's two folds are."""
    with_images(rows).save_to_disk(folder)


def pictures(example: Example) -> tuple[bytes, ...]:
    """The encoded images, read where the data set keeps them."""
    return tuple(i if isinstance(i, bytes) else i.read_bytes() for i in example.images)


def with_images(rows: list[dict[str, Any]]) -> datasets.Dataset:
    dataset = datasets.Dataset.from_list(rows)
    if "image" in dataset.column_names:
        dataset = dataset.cast_column("image", datasets.Image())
    if "images" in dataset.column_names:
        dataset = dataset.cast_column("images", datasets.List(datasets.Image()))
    return dataset


WRITERS = [plain_parquet, features_parquet, saved]


@pytest.fixture(params=WRITERS, ids=lambda writer: writer.__name__)
def write(request, tmp_path):
    """Writes rows as a data set and returns its folder."""

    def writer(rows: list[dict[str, Any]]) -> str:
        folder = tmp_path / "data"
        folder.mkdir()
        request.param(rows, folder)
        return str(folder)

    return writer


def said(example) -> tuple[str, str]:
    """The question's text and the answer."""
    content = example.messages[-2]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return text, example.answer


def test_clear_captions(write):
    source = write(CLEAR)
    examples = read_examples(source)
    assert [e.answer for e in examples] == [row["caption"] for row in CLEAR]
    assert [pictures(e)[0] for e in examples] == [row["image"]["bytes"] for row in CLEAR]
    assert all(said(e)[0] in CAPTION_QUESTIONS for e in examples)
    assert [e.keywords for e in examples] == [(ANN,), (BOB,)]
    assert [e.digest for e in examples] == [e.digest for e in read_examples(source)]
    asked = {said(read_examples(source, seed=seed)[0])[0] for seed in range(20)}
    assert len(asked) > 3


def test_a_caption_question_does_not_depend_on_the_other_rows(tmp_path):
    both, one = tmp_path / "both", tmp_path / "one"
    for folder, rows in ((both, CLEAR), (one, CLEAR[1:])):
        folder.mkdir()
        plain_parquet(rows, folder)
    assert said(read_examples(str(both))[1]) == said(read_examples(str(one))[0])


def test_clear_with_tofu_mixes_pictures_and_text(write):
    text, picture = read_examples(write(TOFU_HALF))
    assert said(text) == ("Where was Ann born?", "In Rome.")
    assert not text.images
    assert picture.answer == f"{ANN} waves."
    assert picture.images


def test_clear_names_and_paraphrases(write):
    source = write(PERTURBED)
    names = read_examples(source, task="name")
    assert said(names[0]) == ("What is the name of the person in the image?", ANN)
    assert (
        read_examples(source, task="paraphrased")[0].answer == PERTURBED[0]["paraphrased_caption"]
    )
    assert read_examples(source)[0].answer == CLEAR[0]["caption"]


def test_a_task_stands_behind_the_source(write, tmp_path):
    source = write(PERTURBED)
    assert [e.answer for e in read_questions(f"{source}#name")] == [ANN, BOB]
    assert [e.answer for e in read_questions(source)] == [row["caption"] for row in PERTURBED]
    with pytest.raises(OptionError, match="task nickname: clear data have caption, name"):
        read_questions(f"{source}#nickname")
    odd = write_rows(tmp_path / "odd#name", [question("sky", "blue")])
    assert [example.answer for example in read_questions(str(odd))] == ["The sky is blue."]


def test_clear_rows_bring_what_the_truth_ratio_needs(write):
    source = write(PERTURBED)
    caption, name = read_examples(source)[0], read_examples(source, task="name")[0]
    assert caption.paraphrased_answer == PERTURBED[0]["paraphrased_caption"]
    assert (caption.perturbed_answers, name.perturbed_answers) == (("Eve sleeps.",), ("Eve",))
    assert caption.subject == name.subject == ANN


@pytest.mark.parametrize(
    ("rows", "question"),
    [
        (REAL_FACES, "What is the name of the person in the image?"),
        (REAL_WORLD, "Which sight is this?"),
    ],
)
def test_clear_options_are_lettered_with_the_answer_among_them(write, rows, question):
    source = write(rows)
    (example,) = read_examples(source)
    text, answer = said(example)
    lines = text.split("\n")
    assert lines[0] == question
    assert answer in lines
    assert answer.endswith(". Cleo")
    assert sorted(line[3:] for line in lines[1:]) == ["Cleo", "Dan", "Eve", "Fay"]
    assert [line[:3] for line in lines[1:]] == ["A. ", "B. ", "C. ", "D. "]
    assert example.keywords == ("Cleo",)
    assert example.option == answer[0]
    (plain,) = read_examples(source, task="open")
    assert said(plain) == (question, "Cleo")
    assert plain.perturbed_answers == ("Dan", "Eve", "Fay")
    assert not plain.option


def test_mllmu_questions_in_both_layouts(write, tmp_path):
    (example,) = read_examples(write([PROFILE]))
    assert said(example) == ("Describe the person.", "Ann is a pilot.")
    folder = tmp_path / "ft_Data"
    folder.mkdir()
    features_parquet([METADATA], folder)
    examples = read_examples(str(folder))
    assert [said(e) for e in examples] == [("Who?", "Ann."), ("Job?", "Pilot.")]
    assert len({e.id for e in examples}) == 2
    assert all("ID 7" in e.id for e in examples)
    assert {e.subject for e in examples} == {"7"}
    assert all(pictures(e) == (METADATA["image"]["bytes"],) for e in examples)


def test_mllmu_evaluation_tasks_have_the_prompts_of_the_benchmark(write):
    source = write([PROFILE])
    one, two = read_examples(source, task="generation")
    manner = "\nAnswer the question based on your trained knowledge in one sentence "
    assert said(one) == (f"Who is it?{manner}accurately in ENGLISH.", "It is Ann.")
    assert said(two) == (f"What does Ann do?{manner}in ENGLISH.", "She flies.")
    assert (len(one.images), len(two.images)) == (1, 0)
    (cloze,) = read_examples(source, task="cloze")
    assert said(cloze)[0].startswith("Ann is a [Blank].\nPlease **ONLY** provide")
    letters = read_examples(source, task="classification")
    assert [said(e) for e in letters] == [
        (
            "What is the job?\nA: cook\nB: pilot\n"
            "Just give ONE letter representing the answer directly.",
            "B",
        ),
        (
            "Where does Ann live?\nA: Rome\nB: Oslo\nC: Bonn\nD: Nice\n"
            "Just give ONE letter representing the answer directly.",
            "A",
        ),
    ]
    assert [e.option for e in letters] == ["B", "A"]


def test_mllmu_test_set_shows_one_of_several_pictures(write):
    one, _ = read_examples(write([TEST_SET]), task="generation")
    assert pictures(one) == (TEST_SET["images"][0]["bytes"],)


def test_tofu(tmp_path):
    row = {
        "question": "Where was Ann born?",
        "answer": "In Rome.",
        "paraphrased_question": "Ann's place of birth?",
        "paraphrased_answer": "Rome it was.",
        "perturbed_answer": ["In Bonn."],
    }
    path = tmp_path / "forget10_perturbed.json"
    path.write_text(json.dumps(row) + "\n")
    assert said(read_examples(str(path))[0]) == ("Where was Ann born?", "In Rome.")
    paraphrased = read_examples(str(path), task="paraphrased")
    assert said(paraphrased[0]) == ("Ann's place of birth?", "Rome it was.")
    assert paraphrased[0].perturbed_answers == ("In Bonn.",)
    assert paraphrased[0].paraphrased_answer == "Rome it was."


def changed(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**row, **values}


@pytest.mark.parametrize(
    ("good", "bad", "options", "reason"),
    [
        (CLEAR[0], changed(CLEAR[1], image=None), {}, "neither an image nor a question"),
        (CLEAR[0], changed(CLEAR[1], caption=""), {}, "field `caption` is empty"),
        (CLEAR[0], changed(CLEAR[1], caption=None), {}, "field `caption` is missing"),
        (CLEAR[0], changed(CLEAR[1], name=None), {"task": "name"}, "field `name` is missing"),
        (
            TOFU_HALF[0],
            changed(TOFU_HALF[0], question=""),
            {"format": "clear"},
            "field `question` is empty",
        ),
        (PROFILE, changed(PROFILE, image=None), {}, "has no image"),
        (METADATA, changed(METADATA, metadata="[{"), {}, "`metadata` is not valid JSON"),
        (METADATA, changed(METADATA, metadata="{}"), {}, "`metadata` must be a JSON list"),
        (
            METADATA,
            changed(METADATA, metadata='[{"Question": "Who?"}]'),
            {},
            "field `Answer` is missing",
        ),
    ],
)
def test_bad_rows_are_refused_with_row_and_reason_or_left_out(good, bad, options, reason, tmp_path):
    path = tmp_path / "rows.parquet"
    tmp_path.mkdir(exist_ok=True)
    datasets.Dataset.from_list([good, bad]).to_parquet(path)
    with pytest.raises(DataError, match=f":1.*: .*{reason}"):
        read_examples(str(tmp_path), **options)
    left_out = []
    kept = read_examples(str(tmp_path), **options, on_bad_row=left_out.append)
    assert kept
    assert len(left_out) == 1
    assert left_out[0].place.endswith(":1")


def test_formats_and_tasks_that_do_not_exist_are_refused(tmp_path):
    plain_parquet(CLEAR, tmp_path)
    with pytest.raises(OptionError, match="format tofoo: choose auto, jsonl, clear, mllmu, tofu"):
        read_examples(str(tmp_path), format="tofoo")
    with pytest.raises(OptionError, match="task cloze: clear data have caption, name"):
        read_examples(str(tmp_path), task="cloze")
