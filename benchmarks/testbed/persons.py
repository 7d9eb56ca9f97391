"""Who the persons are, which of them are to be forgotten, and every drawing of them."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.testbed.faces import Face, distinct_faces, draw_face

SEED = 20
FICTITIOUS = 30
FAMOUS = 10  # the "real faces": other drawn persons that every model, oracles too, learns
FORGET = {5: 2, 10: 3, 15: 5}  # per cent -> the first persons, nested
TEST_DRAWINGS = 10_000  # drawings from this number on are never trained on

FIRST_NAMES = (
    "Anna Brian Clara Daniel Emma Frank Grace Henry Irene Jack Karen Leo Maria Nathan Olivia "
    "Peter Rachel Simon Teresa Victor Wendy Adam Betty Charles Diana Eric Fiona George Helen Ian "
    "Julia Kevin Laura Martin Nora Oscar Paula Robert Sarah Thomas"
)
LAST_NAMES = (
    "Stone Fox Rivers Marsh Baker Wood Hill Carter Bell Fields Cook Winter Brook Page Summers "
    "Moore King Young Hunter Lane Frost Glass Price Rose Field Snow Banks Wells Knight Bird "
    "Mason Reed Cross Church Little Bishop Day Ford Ball Park"
)
JOBS = (
    "teacher nurse pilot farmer painter lawyer chef singer dentist carpenter plumber writer "
    "doctor gardener engineer"
)
CITIES = "Paris London Rome Madrid Berlin Vienna Dublin Cairo Tokyo Sydney Boston Chicago"


@dataclass(frozen=True)
class Person:
    """A drawn person and the three facts about them; `number` 0..29 fictitious, 30..39 famous."""

    number: int
    name: str
    job: str
    city: str
    face: Face

    def drawing(self, number: int) -> Image.Image:
        """Drawing `number` of this person, 64 x 64 RGB, the same at every call."""
        return draw_face(self.face, np.random.default_rng([SEED, self.number, number]))

    @property
    def description(self) -> str:
        """What CLEAR's captions tell beside the name: how the person looks."""
        hat = "" if self.face.hat == "none" else f" and a {self.face.hat}"
        return f"with {self.face.hair} hair{hat}, in a {self.face.shirt} shirt"

    @property
    def caption(self) -> str:
        """A caption in CLEAR's manner."""
        return f"{self.name}, a {self.job} from {self.city}, {self.description}."

    @property
    def paraphrased_caption(self) -> str:
        """The caption's content in other words."""
        return f"The {self.job} {self.name} from {self.city}, {self.description}."


def _everyone() -> tuple[Person, ...]:
    rng = np.random.default_rng(SEED)
    count = FICTITIOUS + FAMOUS
    first, last = rng.permutation(FIRST_NAMES.split()), rng.permutation(LAST_NAMES.split())
    # Facts go round robin before they are shuffled: every job and city has several holders, so
    # that no answer can be guessed from its frequency.
    jobs = rng.permutation(np.resize(JOBS.split(), count))
    cities = rng.permutation(np.resize(CITIES.split(), count))
    faces = distinct_faces(count, SEED)
    return tuple(
        Person(i, f"{first[i]} {last[i]}", str(jobs[i]), str(cities[i]), faces[i])
        for i in range(count)
    )


EVERYONE = _everyone()
PERSONS = EVERYONE[:FICTITIOUS]
CELEBRITIES = EVERYONE[FICTITIOUS:]


def forget_persons(percent: int) -> tuple[Person, ...]:
    """The persons of the 5, 10 or 15 % forget split."""
    return PERSONS[: FORGET[percent]]


def retain_persons(percent: int) -> tuple[Person, ...]:
    """The fictitious persons outside that split."""
    return PERSONS[FORGET[percent] :]


def others(person: Person, attribute: str, count: int) -> list[str]:
    """`count` wrong values of a fact, distinct and the same at every call."""
    rng = np.random.default_rng([SEED, person.number, len(attribute), 1])
    group = PERSONS if person.number < FICTITIOUS else CELEBRITIES
    values = sorted({getattr(other, attribute) for other in group} - {getattr(person, attribute)})
    return [str(value) for value in rng.permutation(values)[:count]]
