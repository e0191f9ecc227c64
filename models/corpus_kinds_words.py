"""Kinds about lists, letters, facts, definitions, and what cannot be known."""

import random

import corpus_facts as facts
from corpus_facts import WORDS
from corpus_kinds import Item, Kind, _near


def _others(value: str, column: list[str], rng: random.Random) -> tuple[str, ...]:
    """Up to four other values of the same column: wrong answers that look right."""
    options = sorted({v for v in column if v != value})
    return tuple(rng.sample(options, min(4, len(options))))


def _sort_numbers(rng: random.Random) -> Item:
    n = rng.randrange(3, 6)
    values = rng.sample(range(100), n)
    down = rng.random() < 0.35
    out = sorted(values, reverse=down)
    order = rng.choice(["from largest to smallest", "in descending order", "from highest to lowest", "from big to small"]
                       if down else ["from smallest to largest", "in ascending order", "from lowest to highest", "from small to big"])
    text = ", ".join(map(str, out))
    swapped = out[:]
    swapped[0], swapped[1] = swapped[1], swapped[0]
    return Item(f"{values}{down}", {"s": ", ".join(map(str, values)), "o": order}, text, text,
                (", ".join(map(str, out[::-1])), ", ".join(map(str, swapped)), ", ".join(map(str, out[:-1]))))


def _sort_words(rng: random.Random) -> Item:
    values = rng.sample(WORDS, rng.randrange(3, 5))
    out = sorted(values)
    text = ", ".join(out)
    return Item(f"{values}", {"s": ", ".join(values)}, text, text, (", ".join(out[::-1]), ", ".join(out[1:] + out[:1])))


def _count_items(rng: random.Random) -> Item:
    values = rng.sample(WORDS, rng.randrange(2, 9))
    n = len(values)
    return Item(f"{values}", {"s": ", ".join(values)}, f"There are {n} words.", str(n), _near(n, rng))


def _count_word(rng: random.Random) -> Item:
    words = rng.sample(WORDS, 3)
    n = rng.randrange(1, 5)
    values = [words[0]] * n + [rng.choice(words[1:]) for _ in range(rng.randrange(1, 5))]
    rng.shuffle(values)
    return Item(f"{values}", {"s": ", ".join(values), "w": words[0]}, f"The word {words[0]} appears {n} time{'s' if n > 1 else ''}.", str(n), _near(n, rng))


def _extreme(rng: random.Random) -> Item:
    values = rng.sample(range(100), rng.randrange(3, 6))
    big = rng.random() < 0.5
    word = rng.choice(["largest", "biggest", "greatest", "highest"] if big else ["smallest", "lowest", "least"])
    r = max(values) if big else min(values)
    return Item(f"{values}{big}", {"s": ", ".join(map(str, values)), "w": word}, f"The {word} number is {r}.", str(r), tuple(str(v) for v in values if v != r))


def _position(rng: random.Random) -> Item:
    values = rng.sample(WORDS, rng.randrange(3, 7))
    at, word = rng.choice([(0, "first"), (1, "second"), (2, "third"), (-1, "last")])
    return Item(f"{values}{at}", {"s": ", ".join(values), "w": word}, f"The {word} word is {values[at]}.", values[at], tuple(v for v in values if v != values[at]))


def _reverse(rng: random.Random) -> Item:
    values = rng.sample(WORDS, rng.randrange(3, 5)) if rng.random() < 0.5 else [str(v) for v in rng.sample(range(100), rng.randrange(3, 6))]
    text = ", ".join(values[::-1])
    return Item(f"{values}", {"s": ", ".join(values)}, text, text, (", ".join(values), ", ".join(values[1:])))


def _spell(rng: random.Random) -> Item:
    w = rng.choice(WORDS)
    text = "-".join(w)
    o = rng.choice(WORDS)
    return Item(w, {"w": w}, text, text, ("-".join(w[:-1]), "-".join(w[1] + w[0] + w[2:]), "-".join(o if o != w else w[::-1])))


def _join(rng: random.Random) -> Item:
    w = rng.choice(WORDS)
    return Item(w, {"w": rng.choice(["-", " ", ", "]).join(w)}, f"The word is {w}.", w, _others(w, WORDS, rng))


def _letters(rng: random.Random) -> Item:
    w = rng.choice(WORDS)
    return Item(w, {"w": w}, f"The word {w} has {len(w)} letters.", str(len(w)), _near(len(w), rng))


def _end_letter(rng: random.Random) -> Item:
    w = rng.choice(WORDS)
    word, letter = rng.choice([("first", w[0]), ("last", w[-1])])
    return Item(f"{w}{word}", {"w": w, "p": word}, f"The {word} letter of {w} is {letter}.", letter, _others(letter, list("abcdeghiklmnoprst"), rng))


LISTS = [
    Kind("sort numbers", "sorting and counting", _sort_numbers, short=True, both=False, weight=1.8, seen=[
        "[Sort|Order|Arrange|Please sort|Put|List|Rank] [these numbers|the numbers|these|the following numbers|] {o}: {s}[.|]", "[Sort|Order|Arrange|Put|List] {s} {o}.", "[Sort|Order|Put] the list {s} {o}.", "{s}: [sort|order|put] them {o}.",
        "[What is|What's] {s} sorted {o}?", "Here are some numbers: {s}. [Sort|Put|Order|Arrange] them {o}.", "[Write|Give|Show|Say] the numbers {s} {o}.", "[Write|Give me|Show me] {s} {o}.", "I have the numbers {s}. [Sort|Order] them {o}."],
        held=["[Could you|Can you] [sort|order|arrange] {s} {o}?", "How [do|would] {s} look {o}?", "My numbers are {s}. I want them {o}."]),
    Kind("sort words", "sorting and counting", _sort_words, short=True, both=False, noise=False, weight=1.2, seen=[
        "[Sort|Order|Arrange|Put|List] [these words|the words|the following words] [alphabetically|in alphabetical order|by the alphabet|from a to z]: {s}[.|]", "[Sort|Order|Arrange|Put] {s} [alphabetically|in alphabetical order|from a to z].", "{s}: [sort|order|put] them [alphabetically|in alphabetical order].",
        "[What is|What's] the alphabetical order of {s}?", "Here are some words: {s}. [Sort|Put|Order] them [alphabetically|in alphabetical order].", "I have the words {s}. [Sort|Order] them [alphabetically|from a to z]."],
        held=["[Could you|Can you] [sort|order] {s} [alphabetically|by the alphabet]?", "In which alphabetical order are {s}?"]),
    Kind("count items", "sorting and counting", _count_items, seen=[
        "How many words are [there |]in [this|the] list: {s}?", "How many words are [these|here|there]: {s}?", "[Count|Please count] [the words|these words|the words in this list]: {s}[.|]", "[Count|Tell me|Say|Give me] the number of words[ here| in this list|]: {s}[.|]", "{s}. How many words [are there|is that|do you count]?", "How long is [the|this] list: {s}?", "{s}: how many words?"],
        held=["[Could you|Can you] count the words {s}?", "I wrote {s}. How many words did I write?"]),
    Kind("count word", "sorting and counting", _count_word, weight=1.0, noise=False, seen=[
        "How [many times|often] [does|is] [the word |]{w} [appear|there|found] in: {s}?", "[Count|Tell me|Say] how [many times|often] {w} appears in: {s}[.|]", "In the list {s}, how [many times|often] [is|does] {w} [there|appear]?", "{s}. How [often|many times] do you see {w}?", "How [often|many times] [is|does] {w} [in|appear in] {s}?"],
        held=["[Could you|Can you] count how often {w} appears in {s}?", "Look at {s}. How many times is {w} there?"]),
    Kind("extreme", "sorting and counting", _extreme, weight=1.3, seen=[
        "[What|Which] [number |]is the {w}[:|,| of| among|] {s}?", "[What is|What's|Find|Tell me|Give me|Name|Say|Pick] the {w} [number |]of {s}[?|.]", "[What is|What's|Find|Tell me] the {w} number in [the list|this list|] {s}[?|.]", "{s}: [which|what] [number |]is the {w}?", "[Of|Among|From] {s}, which is the {w}?",
        "Which of {s} is the {w}?", "Here are numbers: {s}. [Which|What] is the {w}?"],
        held=["[Could you|Can you] find the {w} of {s}?", "I have {s}. Which one is the {w}?"]),
    Kind("position", "sorting and counting", _position, weight=1.0, noise=False, seen=[
        "[What is|What's|Tell me|Give me|Say|Name|Find] the {w} word [in|of] [the list |this list: |]{s}[?|.]", "[What|Which] word is {w} in {s}?", "[What|Which] word [is|comes] {w}: {s}?", "{s}: [what is|which is|name] the {w} word?", "In the list {s}, [what|which] word is {w}?", "[Which|What] is the {w} of [the words |]{s}?"],
        held=["[Could you|Can you] name the {w} word of {s}?", "Look at {s}. Which word is the {w} one?"]),
    Kind("reverse", "sorting and counting", _reverse, short=True, both=False, noise=False, seen=[
        "[Reverse|Turn around|Please reverse|Flip] [the list|this list|the order of|the order of the list|]: {s}[.|]", "[Write|Say|Give|Put|List] {s} [backwards|in reverse|in reverse order|in reversed order|the other way round].", "{s}: [reverse|write|say|give] [it|them] [backwards|in reverse|in reverse order].", "[What is|What's] {s} [in reverse order|backwards|reversed]?", "Reverse {s}."],
        held=["[Could you|Can you] reverse {s}?", "How [is|does] {s} [read |look |]in reverse order?"]),
    Kind("spell", "spelling", _spell, short=True, both=False, by_pair=True, noise=False, weight=1.5, seen=[
        "[How do you spell|How is|How do I spell|How would you spell] [the word |]{w}[ spelled|]?", "Spell [the word |]{w}[ for me|, please|].", "[Give|Write|Tell|Say|Show] me the [spelling|letters] of [the word |]{w}.", "[What is|What's] the spelling of {w}?", "Spelling of {w}[?|]", "{w}: [spell it|how is it spelled?|spelling?]", "[Write|Say|Put] [the word |]{w} letter by letter.", "Which letters are in {w}?"],
        held=["[Could you|Can you] spell {w}?", "How does one spell {w}?", "Letter by letter, what is {w}?"]),
    Kind("join", "spelling", _join, noise=False, weight=1.0, by_pair=True, seen=[
        "[What|Which] word is [spelled |]{w}?", "[What|Which] word do the letters {w} [make|spell|form]?", "[Join|Put together|Combine] the letters {w}.", "{w}: which word is [that|it|this]?", "[Read|Say] the word {w}.", "The letters {w} [make|spell] which word?"],
        held=["[Could you|Can you] join the letters {w}?", "If I spell {w}, which word is it?"]),
    Kind("letters", "spelling", _letters, by_pair=True, noise=False, seen=[
        "How many letters [are in|are there in|does|has] [the word |]{w}[ have|]?", "[Count|Tell me|Say|Give me] [the number of|how many] letters in [the word |]{w}.", "How long is the word {w}?", "[What is|What's] the number of letters in {w}?", "{w}: how many letters?", "The word {w} has how many letters?"],
        held=["[Could you|Can you] count the letters in {w}?", "Of how many letters is {w} made?"]),
    Kind("end letter", "spelling", _end_letter, by_pair=True, noise=False, seen=[
        "[What is|What's|Tell me|Give me|Say|Name] the {p} letter [of|in] [the word |]{w}[?|.]", "[What|Which] letter is the {p} [one |][of|in] {w}?", "[What|Which] letter [is|comes] {p} in {w}?", "{w}: what is the {p} letter?", "The {p} letter of {w}?"],
        held=["[Could you|Can you] name the {p} letter of {w}?", "In {w}, which letter is {p}?"]),
]


def _relation(name: str, category: str, rows: list[tuple[str, ...]], a: int, b: int, sentence: str, seen: list[str], held: list[str], weight: float = 1.0, short: bool = False) -> Kind:
    """A kind that asks for column `b` of a fact by its column `a`."""
    column = [r[b] for r in rows]

    def draw(rng: random.Random) -> Item:
        row = rng.choice(rows)
        text = sentence.replace("{x}", row[a]).replace("{y}", row[b]).replace("{v}", row[1])
        return Item(row[a], {"x": row[a], "v": row[1]}, text[0].upper() + text[1:], row[b], _others(row[b], column, rng))

    return Kind(name, category, draw, seen, held, short=short, by_pair=True, weight=weight)


_CAPITALS = _relation("capital", "facts", facts.COUNTRIES, 0, 1, "The capital of {x} is {y}.", [
    "[What is|What's|Name|Tell me|Give me|Say|State|Which is] the capital [city |]of {x}[?|.]", "[Which|What] city is the capital of {x}?", "{x}'s capital[?| is?| city?]", "[What is|What's] {x}'s capital[ city|]?", "The capital of {x}[?| is| is what?]", "[Do you know|Can you name|Could you name] the capital of {x}?",
    "capital of {x}", "What is the name of the capital of {x}?", "What do you know about the capital of {x}?", "Which capital does {x} have?", "The capital city of {x} is called what?", "{x} has [which|what] capital?"],
    ["I would love to learn the capital of {x}.", "In {x}, which city is the capital?", "[Could you|Can you] tell me what {x}'s capital is?"], weight=3.0)
_COUNTRY_OF = _relation("country of", "facts", facts.COUNTRIES, 1, 0, "{x} is the capital of {y}.", [
    "[Which|What] country has the capital {x}?", "{x} is the capital of [which|what] country?", "Of [which|what] country is {x} the capital?", "[Name|Tell me|Say|Give me] the country whose capital is {x}.", "[Which|What] country's capital is {x}?", "The country with the capital {x}?"],
    ["[Could you|Can you] name the country whose capital is {x}?", "{x} serves as the capital of which country?"], weight=1.8)
_CONTINENT = _relation("continent", "facts", facts.COUNTRIES, 0, 2, "{x} is in {y}.", [
    "[On|In] [which|what] continent [is|lies] {x}?", "[Which|What] continent is {x} [in|on|part of]?", "[Name|Tell me|Say|Give me] the continent of {x}.", "[What is|What's] the continent of {x}?", "{x} [is|lies] [in|on] [which|what] continent?", "[To which|Which] continent does {x} belong[ to|]?", "Continent of {x}?"],
    ["[Could you|Can you] say [on|in] which continent {x} is?", "Where in the world is {x}, on which continent?"], weight=1.5)
_LANGUAGE = _relation("language", "facts", facts.COUNTRIES, 0, 3, "The main official language of {x} is {y}.", [
    "[Which|What] language [is spoken|do people speak|do they speak] in {x}?", "[What is|What's|Name|Tell me] the [main|official] language of {x}[?|.]", "Language of {x}?", "People in {x} speak [which|what] language?", "[Which|What] is the main language in {x}?"],
    ["[Could you|Can you] name the language of {x}?", "If I travel to {x}, which language will I hear?"], weight=1.5)
_SYMBOL = _relation("symbol", "facts", facts.ELEMENTS, 0, 1, "The chemical symbol for {x} is {y}.", [
    "[What is|What's|Give me|Tell me|Name|Say] the [chemical |]symbol [of|for] {x}[?|.]", "[Which|What] [chemical |]symbol does {x} have?", "{x} has [which|what] chemical symbol?", "[Chemical symbol|Symbol] [of|for] {x}?", "How is {x} written as a chemical symbol?", "In chemistry, what is the symbol for {x}?"],
    ["[Could you|Can you] give the symbol of {x}?", "Which letters stand for {x} in the periodic table?"], weight=1.2)
_ELEMENT = _relation("element", "facts", facts.ELEMENTS, 1, 0, "{x} is the chemical symbol for {y}.", [
    "[Which|What] element [has|is] the symbol {x}?", "[What|Which] [chemical |]element is {x}?", "{x} is the [chemical |]symbol [of|for] [which|what] element?", "[Name|Tell me|Say] the element with the symbol {x}.", "What does the [chemical |]symbol {x} stand for?"],
    ["[Could you|Can you] name the element with the symbol {x}?", "In the periodic table, what is {x}?"], weight=0.9)
_YOUNG = _relation("young", "facts", facts.ANIMALS, 0, 1, "A young {x} is called a {y}.", [
    "[What is|What's] [a young|a baby] {x} called?", "[What|How] do you call [a young|a baby] {x}?", "[Name|Tell me|Give me] the word for a [young|baby] {x}.", "A [young|baby] {x} is [called |]what?", "[What is|What's] the name of [a young|a baby] {x}?", "What is the young of a {x} called?"],
    ["[Could you|Can you] name the young of a {x}?", "Which word means a young {x}?"], weight=0.8)
_CLASS = _relation("animal class", "facts", facts.CLASSES, 0, 1, "The {x} is a kind of {y}.", [
    "[What kind|What type|What class] of animal is [a|the] {x}?", "Is [a|the] {x} a mammal, a bird, a fish, a reptile, an amphibian or an insect?", "To [which|what] class of animals does the {x} belong?", "[Which|What] animal class is the {x} in?", "[Tell me|Say] what kind of animal a {x} is.", "Animal class of the {x}?"],
    ["[Could you|Can you] say what kind of animal the {x} is?", "Which group of animals includes the {x}?"], weight=0.8)
_LEGS = _relation("legs", "facts", facts.LEGS, 0, 1, "The {x} has {y} legs.", [
    "How many legs [does|has] [a|an|the] {x}[ have|]?", "[Tell me|Say|Give me] the number of legs of [a|the] {x}.", "[What is|What's] the number of legs of the {x}?", "The {x} has how many legs?", "Number of legs of the {x}?"],
    ["[Could you|Can you] say how many legs the {x} has?", "On how many legs does the {x} walk?"], weight=0.5)
_SIDES = _relation("sides", "facts", facts.SHAPES, 0, 1, "The {x} has {y} sides.", [
    "How many sides [does|has] [a|the] {x}[ have|]?", "[Tell me|Say|Give me] the number of sides of [a|the] {x}.", "[What is|What's] the number of [sides|corners] of [a|the] {x}?", "How many [sides|corners] are there in a {x}?", "A {x} has how many [sides|corners]?"],
    ["[Could you|Can you] say how many sides a {x} has?", "Of a {x}, what is the number of sides?"], weight=0.6)
_MAKER = _relation("maker", "facts", facts.MAKERS, 0, 2, "{y} {v} {x}.", [
    "Who {v} {x}?", "[Tell me|Say|Name] who {v} {x}.", "{x} is the work of [whom|which person]?", "{x}: who {v} it?", "[Which|What] person {v} {x}?", "Do you know who {v} {x}?", "The person who {v} {x}?", "[What is|What's] the name of the person who {v} {x}?"],
    ["[Could you|Can you] say who {v} {x}?", "Whom do we thank for {x}?"], weight=1.3)
_YEAR = _relation("year", "facts", facts.YEARS, 0, 1, "The year of {x} was {y}.", [
    "When was {x}?", "In [which|what] year was {x}?", "[What|Which] year was {x}?", "[Tell me|Give me|Say|Name] the year of {x}.", "{x}: [when|which year|what year]?", "[What is|What's|What was] the [year|date] of {x}?", "The year of {x}?", "When did {x} happen?"],
    ["[Could you|Can you] say when {x} was?", "Which year saw {x}?"], weight=1.2)
_SINGLE = _relation("single", "facts", facts.SINGLES, 0, 1, "{y} is {x}.", [
    "[What is|What's] {x}?", "[Name|Tell me|Give me|Say] {x}.", "[Do you know|Can you name|I need to know] {x}[?|.]", "{x}[?| is?| is what?]", "[Tell me|Say|Find out] what {x} is.", "[What|Which] [would you say |]is {x}?", "[Who|What] is {x}?"],
    ["[Could you|Can you] name {x}?", "Which one is {x}?", "I would love to learn {x}."], weight=3.5)
_MIX = _relation("mix", "facts", [(f"{a} and {b}", "", c) for a, b, c in facts.MIXES] + [(f"{b} and {a}", "", c) for a, b, c in facts.MIXES], 0, 2, "{x} make {y}.", [
    "[What|Which] colour do {x} make[ together|]?", "[What|Which] colour do you get [if you mix|by mixing|from] {x}?", "[Mix|If I mix|Mixing] {x} [gives|makes|:] [what|which colour|what colour]?", "[Tell me|Say|Name] the colour that {x} make."],
    ["[Could you|Can you] say which colour {x} make?", "What comes out when {x} are mixed?"], weight=0.4)
_OPPOSITE = _relation("opposite", "definitions", facts.OPPOSITES + [(b, a) for a, b in facts.OPPOSITES], 0, 1, "The opposite of {x} is {y}.", [
    "[What is|What's|Give me|Tell me|Name|Say] the opposite of [the word |]{x}[?|.]", "[Which|What] word is the opposite of {x}?", "Opposite of {x}?", "[Which|What] word means the opposite of {x}?", "{x}: what is the opposite?", "What is not {x} but the opposite?", "The opposite of {x} is [what|which word]?"],
    ["[Could you|Can you] give the opposite of {x}?", "If it is not {x}, what is the opposite?"], weight=1.5)
_PLURAL = _relation("plural", "definitions", facts.PLURALS, 0, 1, "The plural of {x} is {y}.", [
    "[What is|What's|Give me|Tell me|Name|Say] the plural [form |]of [the word |]{x}[?|.]", "Plural of {x}?", "[One|I have one] {x}, two [what|...]?", "How do you [write|form|say] the plural of {x}?", "{x} in the plural[?| is what?]", "Put {x} [in|into] the plural."],
    ["[Could you|Can you] give the plural of {x}?", "More than one {x} is called what?"], weight=1.0)
_PAST = _relation("past", "definitions", facts.PAST, 0, 1, "The past tense of {x} is {y}.", [
    "[What is|What's|Give me|Tell me|Name|Say] the past [tense |form |]of [the verb |to |]{x}[?|.]", "Past tense of {x}?", "[Today I {x}, yesterday I|I {x} today, yesterday I] [what|...]?", "How do you [write|form|say] the past tense of {x}?", "Put {x} [in|into] the past tense.", "The simple past of {x}?"],
    ["[Could you|Can you] give the past tense of {x}?", "What did I do yesterday if today I {x}?"], weight=1.0)
_DEFINE = _relation("define", "definitions", [(t, t, f"{'An' if t[0] in 'aeiou' else 'A'} {t} is {d}.") for t, d in facts.DEFINITIONS], 0, 2, "{y}", [
    "[What is|What's] [a|an|the meaning of|meant by] {x}?", "[Define|Explain|Describe] [the word |]{x}.", "What does [the word |]{x} mean?", "[Give|Tell] me [the|a] definition of {x}.", "[Tell me|Explain|Say] what a {x} is.", "Definition of {x}?", "Meaning of {x}?", "What do you understand by {x}?", "{x}: what is that?"],
    ["[Could you|Can you] define {x}?", "How would you explain the word {x}?", "If someone says {x}, what do they mean?"], weight=2.5)
_TERM = _relation("term", "definitions", [(d, d, t) for t, d in facts.DEFINITIONS], 0, 2, "The word for {x} is {y}.", [
    "[What|How] do you call {x}?", "[What is|What's] the word for {x}?", "[Which|What] word means {x}?", "[Name|Tell me|Give me|Say] the word for {x}.", "[What is|What's] {x} called?", "{x}: [what is|which is] the word?"],
    ["[Could you|Can you] name the word for {x}?", "We look for a word that means {x}. Which is it?"], weight=1.3)


def _translation(rng: random.Random) -> Item:
    row = rng.choice(facts.TRANSLATIONS)
    i, language = rng.choice([(1, "Spanish"), (2, "French"), (3, "German")])
    return Item(f"{row[0]}{language}", {"x": row[0], "l": language}, f'"{row[0]}" in {language} is "{row[i]}".', row[i], _others(row[i], [r[i] for r in facts.TRANSLATIONS], rng))


_TRANSLATE = Kind("translate", "facts", _translation, by_pair=True, weight=2.0, seen=[
    "[What is|What's] [the {l} word for|the {l} for] {x}?", "[What is|What's] {x} in {l}?", "[Translate|Put|Turn] {x} [into|to] {l}.", "How do you say {x} in {l}?", "{x} in {l}[?|]", "[Tell me|Give me|Say] {x} in {l}.", "[Which|What] {l} word means {x}?", "What do [they|people] say for {x} in {l}?"],
    held=["[Could you|Can you] translate {x} into {l}?", "The {l} translation of {x} is what?"])

FACTS = [_CAPITALS, _COUNTRY_OF, _CONTINENT, _LANGUAGE, _SYMBOL, _ELEMENT, _YOUNG, _CLASS, _LEGS, _SIDES, _MAKER, _YEAR, _SINGLE, _MIX, _TRANSLATE]
LANGUAGE = [_OPPOSITE, _PLURAL, _PAST, _DEFINE, _TERM]
