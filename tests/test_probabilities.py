"""Log-probabilities of answers, against a plain forward pass and by hand."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch

from kvwstream.answers import AnswerEncoder
from kvwstream.errors import NumericalError
from kvwstream.models import inference, load_model
from kvwstream.pipelines.evaluate import probability_scores
from kvwstream.probabilities import AnswerScores, answer_scores
from kvwstream.readers import read_examples
from tests.conftest import question, write_rows


@pytest.fixture(scope="module")
def answering(llama):
    loaded = load_model(llama)
    return loaded, AnswerEncoder(loaded.processor, loaded.model.config)


def test_scores_of_tokens_by_hand():
    scores = AnswerScores(
        np.log([0.5, 0.25, 0.125, 0.5, 0.5]), np.array([True, False, True, True, True])
    )
    assert scores.loss == pytest.approx(log(2) * (1 + 2 + 3 + 1 + 1) / 5)
    assert scores.probability == pytest.approx((0.5**3 * 0.25 * 0.125) ** (1 / 5))
    assert scores.min_k == pytest.approx(3 * log(2))  # one token of five
    assert scores.exact_memorisation == pytest.approx(4 / 5)
    assert scores.extraction_strength == pytest.approx(3 / 5)  # two must be given


@pytest.mark.parametrize(
    ("best", "strength"), [([1, 1, 1], 1), ([0, 1, 1], 2 / 3), ([1, 1, 0], 0), ([0, 0, 0], 0)]
)
def test_extraction_strength_is_the_share_that_need_not_be_given(best, strength):
    scores = AnswerScores(np.full(3, -1.0), np.array(best, bool))
    assert scores.extraction_strength == pytest.approx(strength)


def test_min_k_is_the_mean_of_the_least_likely_fifth():
    scores = AnswerScores(-np.arange(10.0), np.zeros(10, bool))
    assert scores.min_k == pytest.approx((9 + 8) / 2)


def test_a_batch_is_scored_as_each_answer_by_a_plain_forward_pass(answering, data):
    loaded, encoder = answering
    examples = read_examples(str(data["retain"]))
    for example, found in zip(examples, answer_scores(loaded, encoder, examples), strict=True):
        rendered = encoder.render(example)
        start = len(loaded.processor(rendered.prompt).input_ids)
        ids = torch.tensor([loaded.processor(rendered.prompt + rendered.answer).input_ids])
        with inference(loaded.model):
            whole = loaded.model(ids).logits[0].log_softmax(-1)
        rows = whole[start - 1 : -1]
        expected = rows.gather(1, ids[0, start:, None])[:, 0]
        np.testing.assert_allclose(found.log_probs, expected, rtol=1e-4)
        assert found.best.tolist() == (rows.argmax(-1) == ids[0, start:]).tolist()


def test_wrong_answers_give_a_truth_ratio_against_the_paraphrase(answering, tmp_path):
    loaded, encoder = answering
    wrong = ["The sky is red.", "The sky is gold."]
    row = {**question("sky", "blue"), "perturbed_answers": wrong}
    path = write_rows(
        tmp_path / "rows.jsonl",
        [
            question("sea", "green"),
            row,
            {**row, "id": "b", "question": "Sky?", "paraphrased_answer": "Blue is the sky."},
        ],
    )
    plain, first, second = read_examples(str(path))
    found = probability_scores(loaded, encoder, [plain, first, second])
    assert "truth_ratio" not in found[0]
    for example, scores in ((first, found[1]), (second, found[2])):
        right = example.answered(example.paraphrased_answer or example.answer)
        variants = [example, right, *(example.answered(answer) for answer in wrong)]
        own, loss, *losses = [answer_scores(loaded, encoder, [v])[0].loss for v in variants]
        mean = sum(exp(-value) for value in losses) / 2
        assert scores["truth_ratio"] == pytest.approx(mean / exp(-loss), rel=1e-4)
        geometric = exp(-sum(losses) / 2) / exp(-loss)
        assert scores["truth_ratio_geometric"] == pytest.approx(geometric, rel=1e-4)
        share = exp(-own) / (exp(-own) + 2 * mean)
        assert scores["normalised_probability"] == pytest.approx(share, rel=1e-4)


def test_a_number_that_is_not_finite_names_its_example(llama, data):
    loaded = load_model(llama)
    encoder = AnswerEncoder(loaded.processor, loaded.model.config)
    example = read_examples(str(data["forget"]))[0]
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[3] = torch.nan
    with pytest.raises(NumericalError, match=f"example '{example.id}': .* not finite"):
        answer_scores(loaded, encoder, [example])
