"""JSON lines and data sets as examples: what is read, what is refused, and where it stands."""

from __future__ import annotations

import codecs
import json
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvwstream.errors import DataError
from kvwstream.examples import Example
from kvwstream.readers import read_examples

PAIR = {"question": "What is red?", "answer": "Blood."}
OTHER = {"question": "What is blue?", "answer": "The sky."}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is red?"},
    {"role": "assistant", "content": "Blood."},
    {"role": "user", "content": "And blue?"},
    {"role": "assistant", "content": "The sky."},
]

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=8, unique=True)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """`datasets` converts folders into a cache; it is not to be the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)


def lines(folder: Path, *rows: object) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def raw(folder: Path, content: bytes) -> str:
    path = folder / "data.jsonl"
    path.write_bytes(content)
    return str(path)


def contents(examples: list[Example]) -> list[tuple[str, str]]:
    return [(example.prompt[0]["content"], example.answer) for example in examples]


# JSON lines: what is read


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pairs=pairs,
    ascii_only=st.booleans(),
    end=st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n"]),
    bom=st.booleans(),
    last_end=st.booleans(),
)
def test_any_pairs_read_back_as_they_were_written(tmp_path, pairs, ascii_only, end, bom, last_end):
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    encoded = [json.dumps(row, ensure_ascii=ascii_only).encode() for row in rows]
    content = codecs.BOM_UTF8 * bom + end.join(encoded) + end * last_end
    examples = read_examples(raw(tmp_path, content))
    assert contents(examples) == pairs
    step = end.count(b"\n")
    assert [e.id for e in examples] == [f"data.jsonl:{1 + step * i}" for i in range(len(pairs))]


def test_both_forms_with_and_without_id_and_keyword(tmp_path):
    source = lines(
        tmp_path,
        PAIR,
        {"id": "sky", **OTHER, "keyword": "sky"},
        {"id": 7, "messages": CHAT, "keyword": ["sky", "heaven"], "unknown": 1},
        {"id": None, "messages": CHAT[:3], "question": "unused", "keyword": None},
    )
    first, second, third, fourth = read_examples(source)
    assert first == Example(
        "data.jsonl:1",
        (
            {"role": "user", "content": "What is red?"},
            {"role": "assistant", "content": "Blood."},
        ),
    )
    assert (second.id, second.keywords) == ("sky", ("sky",))
    assert (third.id, third.keywords) == ("7", ("sky", "heaven"))
    assert (third.messages, third.prompt, third.answer) == (
        tuple(CHAT),
        tuple(CHAT[:4]),
        "The sky.",
    )
    assert (fourth.id, fourth.messages) == ("data.jsonl:4", tuple(CHAT[:3]))


@pytest.mark.parametrize("row", [PAIR, {"messages": CHAT}], ids=["pair", "messages"])
def test_what_evaluation_alone_reads_is_no_content(row, tmp_path):
    extras = {
        "option": "B",
        "subject": "colours",
        "paraphrased_answer": "Of blood.",
        "perturbed_answers": ["Snow.", "Coal."],
    }
    (plain,) = read_examples(lines(tmp_path, row))
    (example,) = read_examples(lines(tmp_path, {**row, **extras}))
    assert {**extras, "perturbed_answers": ("Snow.", "Coal.")}.items() <= vars(example).items()
    assert example.digest == plain.digest


def test_separators_of_lines_within_text_do_not_split_a_line(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\nh\r\ni"
    row = json.dumps({"question": text, "answer": text}, ensure_ascii=False)
    assert "\u2028" in row
    assert contents(read_examples(raw(tmp_path, row.encode()))) == [(text, text)]


def test_space_around_an_answer_is_kept(tmp_path):
    """The tokeniser decides what it means; here nothing is lost."""
    source = lines(tmp_path, {"question": " q ", "answer": " a\n"})
    assert contents(read_examples(source)) == [(" q ", " a\n")]


def test_a_path_may_start_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    lines(tmp_path, PAIR)
    assert contents(read_examples("~/data.jsonl")) == [("What is red?", "Blood.")]


# JSON lines: what is refused, with its line

NEEDS = "a row needs `question` and `answer`, or `messages`"
ROLE = "needs a `role` of system, user, assistant and a `content`"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([PAIR], "expected a JSON object, got list"),
        ("text", "expected a JSON object, got str"),
        (None, "expected a JSON object, got NoneType"),
        (3, "expected a JSON object, got int"),
        ({}, f"field `question` is missing; {NEEDS}"),
        ({"Question": "q", "answer": "a"}, f"field `question` is missing; {NEEDS}"),
        ({"question": "q"}, f"field `answer` is missing; {NEEDS}"),
        ({"question": "q", "answer": None}, f"field `answer` is missing; {NEEDS}"),
        ({"question": "q", "answer": 4}, f"field `answer` is int, not text; {NEEDS}"),
        ({"question": ["q"], "answer": "a"}, f"field `question` is list, not text; {NEEDS}"),
        ({"question": "q", "answer": ""}, "field `answer` is empty"),
        ({"question": "q", "answer": " \t\n\u00a0\u2003"}, "field `answer` is empty"),
        ({"question": " ", "answer": "a"}, "field `question` is empty"),
        ({**PAIR, "keyword": ""}, "`keyword` must be text with letters or digits, or a list of it"),
        ({**PAIR, "keyword": "?!"}, "`keyword` must be text with letters or digits"),
        ({**PAIR, "keyword": ["red", ""]}, "`keyword` must be text with letters or digits"),
        ({**PAIR, "option": 1}, "field `option` is int, not text"),
        ({**PAIR, "subject": " "}, "field `subject` is empty"),
        ({**PAIR, "perturbed_answers": "red"}, "field `perturbed_answers` must be a list of text"),
        ({**PAIR, "keyword": [1]}, "`keyword` must be text with letters or digits"),
        ({**PAIR, "keyword": {"a": 1}}, "`keyword` must be text with letters or digits"),
        ({"messages": []}, "`messages` must be a list of at least a question and an answer"),
        ({"messages": "hello"}, "`messages` must be a list of at least a question"),
        ({"messages": CHAT[2:3]}, "`messages` must be a list of at least a question"),
        ({"messages": ["hi", "ho"]}, f"message 0: {ROLE}"),
        ({"messages": [CHAT[1], {"content": "a"}]}, f"message 1: {ROLE}"),
        ({"messages": [CHAT[1], {"role": "bot", "content": "a"}]}, f"message 1: {ROLE}"),
        ({"messages": [CHAT[1], {"role": ["user"], "content": "a"}]}, f"message 1: {ROLE}"),
        (
            {"messages": [{"role": "user"}, CHAT[2]]},
            "message 0: `content` must be text and not emp",
        ),
        (
            {"messages": [CHAT[1], {"role": "assistant", "content": " "}]},
            "message 1: `content` must be text and not empty",
        ),
        ({"messages": [{"role": "user", "content": 5}, CHAT[2]]}, "message 0: `content` must be"),
        ({"messages": CHAT[:4]}, "the last message must be the assistant's answer"),
        ({"messages": [CHAT[2], CHAT[1]]}, "the last message must be the assistant's answer"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(row, message, tmp_path):
    source = lines(tmp_path, OTHER, row)
    with pytest.raises(DataError) as caught:
        read_examples(source)
    assert f"data.jsonl:2: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "Expecting property name"),
        (b'{"question": "q", "answer": "a"},', "Extra data"),
        (b'{"question": "q" "answer": "a"}', "Expecting ',' delimiter"),
        (b"{'question': 'q', 'answer': 'a'}", "Expecting property name"),
        (b"question,answer", "Expecting value"),
        (b'{"question": "\xff\xfe", "answer": "a"}', "can't decode byte 0xff"),
        ('{"question": "Stra\u00dfe?", "answer": "a"}'.encode("latin-1"), "can't decode byte 0xdf"),
        (b'{"question": "q", "answer": "\\ud83d"}', "surrogates not allowed"),
        (b'{"question": "q", "answer": "\\UD83D"}', "Invalid \\escape"),
        (b"[" * 100_000, "recursion"),
        (b"\x1f\x8b\x08\x00", "can't decode byte 0x8b"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_line_that_is_not_json_is_refused_with_its_number(line, message, tmp_path):
    with pytest.raises(DataError) as caught:
        read_examples(raw(tmp_path, b"\n" + json.dumps(PAIR).encode() + b"\n\n" + line + b"\n"))
    assert "data.jsonl:4: not JSON: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_surrogate_pairs_are_text(tmp_path):
    source = raw(tmp_path, b'{"question": "\\ud83d\\ude00", "answer": "\\uD83D\\uDE00 \\ufeff"}')
    assert contents(read_examples(source)) == [("\U0001f600", "\U0001f600 \ufeff")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \r\n\t\n"])
def test_a_file_without_examples_is_refused(content, tmp_path):
    with pytest.raises(DataError, match=r"data\.jsonl: holds no examples"):
        read_examples(raw(tmp_path, content))


# Duplicates


def test_duplicate_ids_are_refused(tmp_path):
    source = lines(tmp_path, {"id": 1, **PAIR}, {"id": "1", **OTHER})
    with pytest.raises(DataError, match=r"examples '1' and '1' have the same id; every example"):
        read_examples(source)


@pytest.mark.parametrize(
    "twin",
    [PAIR, {"id": "twin", **PAIR, "keyword": "red"}, {"messages": CHAT[1:3]}],
    ids=["same", "another id and keyword", "another form"],
)
def test_duplicate_contents_are_refused_whatever_their_ids(twin, tmp_path):
    source = lines(tmp_path, PAIR, OTHER, twin)
    name = twin.get("id", "data.jsonl:3")
    with pytest.raises(DataError, match=f"'data.jsonl:1' and '{name}' have the same content"):
        read_examples(source)


def test_the_same_question_with_another_answer_is_no_duplicate(tmp_path):
    source = lines(tmp_path, PAIR, {**PAIR, "answer": "A rose."}, {**OTHER, "answer": "Blood."})
    assert len(read_examples(source)) == 3


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=st.tuples(texts, texts), two=st.tuples(texts, texts), names=st.tuples(texts, texts))
def test_the_digest_is_of_the_content_and_not_of_the_id(tmp_path, one, two, names):
    digests = []
    for (question, answer), name in zip((one, two, one), (*names, names[1]), strict=True):
        row = {"id": name, "question": question, "answer": answer, "keyword": "x"}
        (example,) = read_examples(lines(tmp_path, row))
        assert example.id == name
        digests.append(example.digest)
    assert digests[0] == digests[2]
    assert (digests[0] == digests[1]) == (one == two)
    swapped = {"question": one[1], "answer": one[0]}
    (example,) = read_examples(lines(tmp_path, swapped))
    assert (example.digest == digests[0]) == (one[0] == one[1])


def test_a_role_is_content_too(tmp_path):
    system = [{**CHAT[0], "role": "user"}, *CHAT[1:]]
    one, two = read_examples(lines(tmp_path, {"messages": CHAT}, {"messages": system}))
    assert one.digest != two.digest


# Data sets


def table(*rows: dict[str, object]) -> datasets.Dataset:
    return datasets.Dataset.from_list(list(rows))


def test_a_saved_data_set_reads_as_the_same_json_lines(tmp_path):
    rows = [{"id": "a", **PAIR, "keyword": ["red"]}, {"id": "b", **OTHER, "keyword": ["s", "t"]}]
    table(*rows).save_to_disk(tmp_path / "saved")
    assert read_examples(str(tmp_path / "saved")) == read_examples(lines(tmp_path, *rows))


def test_a_saved_data_set_of_conversations(tmp_path):
    table({"messages": CHAT}, {"messages": CHAT[1:3]}).save_to_disk(tmp_path / "saved")
    one, two = read_examples(str(tmp_path / "saved"))
    assert (one.messages, two.messages) == (tuple(CHAT), tuple(CHAT[1:3]))
    assert (one.id, two.id) == ("saved:0", "saved:1")


def test_the_split_of_a_saved_dictionary_is_chosen(tmp_path):
    source = str(tmp_path / "saved")
    splits = {"train": table(PAIR), "forget10": table(OTHER)}
    datasets.DatasetDict(splits).save_to_disk(source)
    assert contents(read_examples(source)) == [("What is red?", "Blood.")]
    assert contents(read_examples(source, split="forget10")) == [("What is blue?", "The sky.")]
    with pytest.raises(
        DataError, match=r"saved: has no split 'test'; choose --split train or forget10"
    ):
        read_examples(source, split="test")


def test_a_folder_of_parquet(tmp_path):
    source = tmp_path / "folder"
    source.mkdir()
    table(PAIR, OTHER).to_parquet(source / "train.parquet")
    table({**PAIR, "answer": "A rose."}).to_parquet(source / "test.parquet")
    assert contents(read_examples(str(source))) == [
        ("What is red?", "Blood."),
        ("What is blue?", "The sky."),
    ]
    assert contents(read_examples(str(source), split="test")) == [("What is red?", "A rose.")]


def test_a_folder_of_json_lines(tmp_path):
    (tmp_path / "folder").mkdir()
    lines(tmp_path / "folder", PAIR, OTHER)
    assert len(read_examples(str(tmp_path / "folder"))) == 2


def test_columns_that_are_null_count_as_missing(tmp_path):
    """A table has every column in every row; only one form is filled."""
    table(
        {**PAIR, "messages": None, "id": None, "keyword": None},
        {"question": None, "answer": None, "messages": CHAT, "id": "chat", "keyword": "sky"},
    ).save_to_disk(tmp_path / "saved")
    one, two = read_examples(str(tmp_path / "saved"))
    assert (one.id, one.answer, one.keywords) == ("saved:0", "Blood.", ())
    assert (two.id, two.messages, two.keywords) == ("chat", tuple(CHAT), ("sky",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": None}, "field `answer` is missing"),
        ({"question": "q", "answer": " "}, "field `answer` is empty"),
        ({"prompt": "q", "answer": "a"}, "field `question` is missing"),
        ({"messages": CHAT[:2]}, "the last message must be the assistant's answer"),
    ],
)
def test_a_bad_row_of_a_data_set_is_refused_with_its_number(row, message, tmp_path):
    good = {key: PAIR.get(key) for key in row} if "messages" not in row else {"messages": CHAT}
    rows = [good, row] if "prompt" not in row else [row]
    table(*rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError) as caught:
        read_examples(str(tmp_path / "saved"))
    assert f"saved:{len(rows) - 1}: {message}" in str(caught.value)


def test_numbers_for_text_are_refused(tmp_path):
    table({"question": "How many?", "answer": 4}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="saved:0: field `answer` is int, not text"):
        read_examples(str(tmp_path / "saved"))


def test_an_empty_data_set_is_refused(tmp_path):
    empty = datasets.Dataset.from_dict({"question": [], "answer": []})
    empty.save_to_disk(tmp_path / "saved")
    with pytest.raises(
        DataError, match=r"saved: (holds no examples|not a data set that can be loaded)"
    ):
        read_examples(str(tmp_path / "saved"))


def test_duplicates_in_a_data_set_are_refused(tmp_path):
    table(PAIR, OTHER, PAIR).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match="examples 'saved:0' and 'saved:2' have the same content"):
        read_examples(str(tmp_path / "saved"))


def test_a_damaged_data_set_is_refused(tmp_path):
    table(PAIR).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"garbage")
    with pytest.raises(DataError, match="saved: not a data set that can be loaded: ") as caught:
        read_examples(str(tmp_path / "saved"))
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_script_is_refused_and_the_script_not_run(tmp_path):
    folder, marker = tmp_path / "folder", tmp_path / "executed"
    folder.mkdir()
    (folder / "folder.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(DataError, match="folder: not a data set that can be loaded: "):
        read_examples(str(folder))
    assert not marker.exists()


def test_a_hub_data_set_fails_in_one_line_without_the_hub():
    """The tests run with the hub switched off."""
    with pytest.raises(DataError, match="nobody/nothing: not a data set that can be lo") as caught:
        read_examples("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere.jsonl", "./owner/name", "/owner/name", "a/b/c", "~/x"])
def test_what_is_neither_there_nor_a_hub_id_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        read_examples(source)
    assert str(caught.value) == (
        f"{source}: no such file or folder, and not a hub id like owner/name"
    )
