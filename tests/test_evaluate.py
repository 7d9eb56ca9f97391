"""Greedy answers and their scores."""

from __future__ import annotations

import json

import pytest
import torch

from kvwstream.accessor import LayerRange
from kvwstream.errors import OptionError, PlanMismatchError
from kvwstream.examples import question_answer
from kvwstream.models import inference, load_model
from kvwstream.pipelines.apply import apply
from kvwstream.pipelines.evaluate import Judgement, evaluate, judge, judged
from kvwstream.readers import read_examples
from kvwstream.strength import Strength
from tests.conftest import Artefacts, llama_config, save_model


def test_batches_answer_as_single_questions_do(llama, data):
    loaded, examples = load_model(llama), read_examples(str(data["retain"]))
    together = judge(loaded, examples, batch_size=8, max_new_tokens=6)
    alone = judge(loaded, examples, batch_size=1, max_new_tokens=6)
    assert [j.response for j in together.judgements] == [j.response for j in alone.judgements]


def test_answers_are_the_greedy_continuation_of_the_prompt(llama, data):
    loaded, examples = load_model(llama), read_examples(str(data["forget"]))
    (judgement,) = judge(loaded, examples[:1], max_new_tokens=5).judgements
    text = loaded.processor.apply_chat_template(
        list(examples[0].prompt), add_generation_prompt=True, tokenize=False
    )
    ids = loaded.processor(text, return_tensors="pt").input_ids
    start = ids.shape[1]
    with inference(loaded.model):
        for _ in range(5):
            best = loaded.model(ids).logits[0, -1].argmax()
            ids = torch.cat([ids, best[None, None]], dim=1)
    assert judgement.response == loaded.processor.decode(ids[0, start:]).strip()


def test_gates_answer_as_the_weakened_checkpoint_does(artefacts: Artefacts, data, tmp_path):
    layers, out = LayerRange(0, 1), tmp_path / "weakened"
    strength = Strength(2.0, layers)
    apply(artefacts.model, artefacts.statistics, out, strength)
    examples = read_examples(str(data["forget"]))
    tried = evaluate(
        artefacts.model,
        examples,
        statistics=artefacts.statistics,
        strength=strength,
        max_new_tokens=8,
    )
    written = evaluate(out, examples, max_new_tokens=8)
    vanilla = evaluate(artefacts.model, examples, max_new_tokens=8)
    assert tried == written
    assert tried != vanilla


@pytest.mark.parametrize(
    ("example", "response", "right"),
    [
        (question_answer("1", "Which?", "B"), "B. cook", True),
        (question_answer("1", "Which?", "(b)"), "b", True),
        (question_answer("1", "Which?", "B"), "A bad answer", False),
        (question_answer("1", "How many legs?", "8"), "It has 8 legs", True),
        (question_answer("1", "Which element?", "I", (), ["I", "iodine"]), "It is iodine", True),
        (question_answer("1", "What is H2O?", "水"), "就是水", True),
    ],
)
def test_a_letter_alone_is_an_option_unless_keywords_say_otherwise(example, response, right):
    judgement = judged(example, response)
    assert judgement.correct is right
    assert ("option_letter" in judgement.scores) == (example.answer.strip("()").lower() == "b")


def test_gates_of_another_model_are_refused(artefacts: Artefacts, data, tmp_path):
    other = save_model(tmp_path / "other", llama_config(), seed=1)
    examples, strength = read_examples(str(data["forget"])), Strength(1.0, LayerRange(0, 1))
    with pytest.raises(PlanMismatchError, match="statistics fit the very weights"):
        evaluate(other, examples, statistics=artefacts.statistics, strength=strength)
    with pytest.raises(OptionError, match="belong together: give both or none"):
        evaluate(other, examples, strength=strength)


def test_lines_hold_every_judgement(llama, data, tmp_path):
    examples = read_examples(str(data["forget"]))
    result = evaluate(llama, examples, max_new_tokens=3)
    result.write(tmp_path / "deep" / "answers.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "deep/answers.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [example.id for example in examples]
    assert sum(row["correct"] for row in rows) / len(rows) == result.accuracy
    assert [Judgement.from_dict(row) for row in rows] == result.judgements
    assert {"id", "question", "answer", "response", "correct", "rougeL_f"} < rows[0].keys()


def test_the_models_own_generation_settings_do_not_bend_greedy_answers(llama, data):
    loaded, examples = load_model(llama), read_examples(str(data["forget"]))
    plain = judge(loaded, examples, max_new_tokens=8)
    own = loaded.model.generation_config
    own.repetition_penalty, own.num_beams, own.min_new_tokens = 50.0, 3, 7
    assert judge(loaded, examples, max_new_tokens=8) == plain
    assert loaded.model.generation_config is own
