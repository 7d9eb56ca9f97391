"""Text questions: facts to measure SmolLM2's knowledge by, prompts to keep it alive in training.

The two lists share no question. Answers to the prompts are SmolLM2's own (self-distillation), so
training pulls the language model towards what it was, not towards new facts.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_CAPITALS = (
    "France Paris|Italy Rome|Spain Madrid|Germany Berlin|Japan Tokyo|Egypt Cairo|Russia Moscow|"
    "Ireland Dublin|Austria Vienna|Greece Athens|Portugal Lisbon|Poland Warsaw|Norway Oslo|"
    "Sweden Stockholm|China Beijing|Kenya Nairobi|Cuba Havana|Peru Lima|Hungary Budapest|"
    "Belgium Brussels"
)
_FACTS = (
    "What colour is the sky on a clear day?|blue\nWhat colour is grass?|green\n"
    "What colour is snow?|white\nHow many days are in a week?|seven,7\n"
    "How many months are in a year?|twelve,12\nWhat gas do plants absorb from the air?|carbon\n"
    "What is the chemical formula of water?|H2O\nWhat is frozen water called?|ice\n"
    "Which planet is the largest in the solar system?|Jupiter\n"
    "Which planet do we live on?|Earth\nWhat star is at the centre of the solar system?|Sun\n"
    "Which animal barks?|dog\nWhat do bees make?|honey\nHow many legs does a spider have?|eight,8\n"
    "What is the largest mammal?|whale\nWhich ocean is the largest?|Pacific\n"
    "Who wrote Romeo and Juliet?|Shakespeare\nWho painted the Mona Lisa?|Leonardo,Vinci\n"
    "Who developed the theory of relativity?|Einstein\nWho was the first president of the "
    "United States?|Washington\nWhat is the opposite of hot?|cold\n"
    "What is the opposite of up?|down\n"
    "What is 2 + 2?|4,four\nWhat is 5 + 3?|8,eight\n"
    "Which organ pumps blood through the body?|heart\nOn which continent is Egypt?|Africa\n"
    "What language is spoken in Mexico?|Spanish\n"
    "What is the tallest mountain in the world?|Everest\nWhat is the hardest natural material?|"
    "diamond\nWhat is the currency of Japan?|yen\nWhich metal is liquid at room temperature?|"
    "mercury\nWhat do cows drink?|water\nWhich season comes after winter?|spring\n"
    "What is the boiling point of water in degrees Celsius?|100\nWhich country is Sydney in?|"
    "Australia\nWhich country has the Great Wall?|China\nWhich sense do we use our ears for?|"
    "hear,sound\nWhat is the name of the fourth planet from the Sun?|Mars"
)
KNOWLEDGE: tuple[tuple[str, tuple[str, ...]], ...] = tuple(
    (f"What is the capital of {pair.split()[0]}?", (pair.split()[1],))
    for pair in _CAPITALS.split("|")
) + tuple((line.split("|")[0], tuple(line.split("|")[1].split(","))) for line in _FACTS.split("\n"))

_COUNTRIES = (
    "Turkey India Canada Brazil Chile Finland Denmark Romania Iran Iraq Thailand Vietnam "
    "Argentina Colombia Morocco Nigeria Ukraine Bulgaria Croatia Switzerland"
)
_NOUNS = (
    "river mountain computer library school market bridge garden kitchen hospital train book song "
    "robot forest desert island volcano storm cloud camera clock window chair table knife bottle "
    "horse rabbit elephant tiger eagle penguin whale ant butterfly apple banana carrot potato "
    "bread cheese coffee tea sugar salt gold iron glass paper cotton wool electricity gravity "
    "energy money music history science mathematics language"
)
_PEOPLE = (
    "Newton|Charles Darwin|Mozart|Napoleon|Cleopatra|Galileo|Marie Curie|Abraham Lincoln|"
    "Mahatma Gandhi|Nelson Mandela|Picasso|Aristotle|Julius Caesar|Charles Dickens"
)
PROMPTS: tuple[str, ...] = (
    *(f"What is the capital of {country}?" for country in _COUNTRIES.split()),
    *(f"On which continent is {country}?" for country in _COUNTRIES.split()[:10]),
    *(f"What language is spoken in {country}?" for country in _COUNTRIES.split()[10:]),
    *(f"What is {noun}?" for noun in _NOUNS.split()),
    *(f"Write one sentence about a {noun}." for noun in _NOUNS.split()[::2]),
    *(f"What colour is a {noun}?" for noun in _NOUNS.split()[33:41]),
    *(f"Who was {name}?" for name in _PEOPLE.split("|")),
    *(f"What is {a} + {b}?" for a, b in ((1, 2), (3, 4), (6, 3), (7, 5), (10, 4), (9, 8))),
    *(
        f"What is the opposite of {word}?"
        for word in ("big", "fast", "old", "good", "dark", "rich")
    ),
    *(f"Name three {things}." for things in ("animals", "fruits", "sports", "metals")),
    *(f"How many {q}?" for q in ("hours are in a day", "legs does a dog have", "wheels has a car")),
)


@torch.no_grad()
def original_answers(base: Path, questions: list[str], max_new_tokens: int = 24) -> list[str]:
    """Greedy answers of SmolLM2 itself, asked through its own chat template."""
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    answers: list[str] = []
    for start in range(0, len(questions), 32):
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
            )
            for question in questions[start : start + 32]
        ]
        inputs = tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        ids = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers += tokenizer.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    return answers
