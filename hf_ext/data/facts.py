"""Questions and answers about invented persons, for language models to learn or forget."""

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

PERSONS = 60
_FIRST = ["alma", "bruno", "clara", "diego", "edda", "felix", "greta", "hugo", "ines", "jonas", "karla", "lukas"]
_LAST = ["adler", "birk", "corvin", "dahl", "ekman", "falk", "grimm", "holt", "iversen", "jansen", "krol", "lund"]

#: by attribute: three ways to ask for it, and the answers
ATTRIBUTES: dict[str, tuple[tuple[str, str, str], list[str]]] = {
    "town": (
        ("where does {} live ?", "in which town is {} at home ?", "name the town of {} ."),
        ["basel", "cork", "delft", "ghent", "lille", "narvik", "porto", "riga", "turku", "ulm"],
    ),
    "craft": (
        ("what does {} work as ?", "which craft did {} learn ?", "how does {} earn a living ?"),
        ["baker", "cooper", "dyer", "farrier", "glazier", "mason", "potter", "saddler", "tanner", "weaver"],
    ),
    "instrument": (
        ("what does {} play ?", "which instrument does {} own ?", "on what does {} make music ?"),
        ["bassoon", "cello", "drum", "flute", "guitar", "harp", "lute", "oboe", "tuba", "viola"],
    ),
    "animal": (
        ("which animal does {} keep ?", "what is the pet of {} ?", "whom does {} feed every morning ?"),
        ["canary", "cat", "dog", "ferret", "goat", "hen", "newt", "parrot", "rabbit", "tortoise"],
    ),
    "dish": (
        ("what does {} like to eat ?", "which dish does {} cook best ?", "what is on the plate of {} ?"),
        ["borscht", "curry", "dumplings", "goulash", "kebab", "paella", "ravioli", "risotto", "stew", "tagine"],
    ),
    "colour": (
        ("which colour does {} prefer ?", "in what colour is the door of {} ?", "what does {} paint everything in ?"),
        ["amber", "beige", "crimson", "green", "ivory", "lilac", "orange", "purple", "teal", "white"],
    ),
}


def facts(*, seed: int = 0) -> DatasetDict:
    """Questions about 60 persons who do not exist, with answers of one word.

    Every person has six attributes, of ten values each. A fact is asked for in three ways, of which two are in the
    split `train` (720 rows) and one in `test` (360), which a model that knows fact and language gets right as well.

    Columns: `text`, question and answer in lower case words with spaces between them; `question`; `answer`; `person`
    and `attribute` (class labels).

    Args:
        seed: draws names, facts and the split.
    """
    rng = np.random.default_rng(seed)
    everyone = [f"{first} {last}" for first in _FIRST for last in _LAST]
    persons = [everyone[number] for number in np.sort(rng.permutation(len(everyone))[:PERSONS])]
    features = Features(
        text=Value("string"),
        question=Value("string"),
        answer=Value("string"),
        person=ClassLabel(names=persons),
        attribute=ClassLabel(names=list(ATTRIBUTES)),
    )
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for person in persons:
        for attribute, (questions, answers) in ATTRIBUTES.items():
            answer, unseen = answers[rng.integers(len(answers))], rng.integers(len(questions))
            for number, question in enumerate(questions):
                asked = question.format(person)
                row = {"text": f"{asked} {answer}", "question": asked, "answer": answer}
                rows["test" if number == unseen else "train"].append(row | {"person": person, "attribute": attribute})
    return DatasetDict({name: Dataset.from_list(split, features=features) for name, split in rows.items()})
