"""Kinds of questions: the type, and the kinds whose answers are computed.

A kind draws an instance (a key, the slots of its templates and the two forms of
its answer) and holds its templates, those seen in training and those held out.
Instances are held out by a hash of the kind and the key, so the split never
depends on the order of draws. Facts cannot be known unseen: there the pair
(fact, template) is held out instead (`by_pair`).
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from corpus_facts import DAYS, ITEMS, MONTH_DAYS, MONTHS, PEOPLE, SIZES

HELD_ONE_IN = 14
SEEN = "seen"  # the key of instances that are never held out


@dataclass(frozen=True)
class Item:
    """One instance of a kind: what is asked and the two forms of the answer."""

    key: str
    slots: dict[str, str]
    sentence: str
    short: str
    near: tuple[str, ...] = ()  # wrong short answers that look right


@dataclass(frozen=True)
class Kind:
    """A kind of question. `short` says which form of answer it prefers."""

    name: str
    category: str
    draw: Callable[[random.Random], Item]
    seen: list[str]
    held: list[str]
    short: bool = False
    noise: bool = True
    by_pair: bool = False
    weight: float = 1.0
    both: bool = field(default=True)  # whether a wish may ask for the other form


def held_out(*parts: object) -> bool:
    """Whether this key belongs to the held-out instances (fixed for ever by its hash)."""
    if SEEN in parts:
        return False
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_ONE_IN == 0


def _near(n: int, rng: random.Random) -> tuple[str, ...]:
    options = {n + d for d in (-10, -2, -1, 1, 2, 10)} | {n + rng.randrange(3, 20)}
    return tuple(str(v) for v in sorted(options) if v >= 0 and v != n)


def _sum(rng: random.Random) -> Item:
    a, b = (rng.randrange(100), rng.randrange(100)) if rng.random() < 0.8 else (rng.randrange(21), rng.randrange(21))
    return Item(f"{a}+{b}", {"a": str(a), "b": str(b)}, f"{a} + {b} = {a + b}.", str(a + b), _near(a + b, rng))


def _difference(rng: random.Random) -> Item:
    a, b = sorted((rng.randrange(100), rng.randrange(100)), reverse=True)
    return Item(f"{a}-{b}", {"a": str(a), "b": str(b)}, f"{a} - {b} = {a - b}.", str(a - b), _near(a - b, rng))


def _product(rng: random.Random) -> Item:
    a, b = rng.randrange(1, 13), rng.randrange(1, 13)
    # Only pairs with a < b are held out: the table's other half is seen.
    key = f"{a}*{b}" if a < b else SEEN
    return Item(key, {"a": str(a), "b": str(b)}, f"{a} × {b} = {a * b}.", str(a * b), _near(a * b, rng))


def _quotient(rng: random.Random) -> Item:
    a, b = rng.randrange(1, 13), rng.randrange(1, 13)
    key = f"{a}/{b}" if a < b else SEEN
    return Item(key, {"a": str(a * b), "b": str(b)}, f"{a * b} ÷ {b} = {a}.", str(a), _near(a, rng))


def _three(rng: random.Random) -> Item:
    a, b, c = (rng.randrange(1, 21) for _ in range(3))
    return Item(f"{a}+{b}+{c}", {"a": str(a), "b": str(b), "c": str(c)},
                f"{a} + {b} = {a + b}, and {a + b} + {c} = {a + b + c}.", str(a + b + c), _near(a + b + c, rng))


def _scaled(rng: random.Random) -> Item:
    word, n, value = rng.choice([("double", rng.randrange(1, 100), 2), ("half", 2 * rng.randrange(1, 100), 0), ("square", rng.randrange(1, 13), 1)])
    result = {2: 2 * n, 0: n // 2, 1: n * n}[value]
    key = f"{word}{n}" if word != "square" else SEEN
    return Item(key, {"w": word, "a": str(n)}, f"The {word} of {n} is {result}.", str(result), _near(result, rng))


def _neighbour(rng: random.Random) -> Item:
    n, after = rng.randrange(1, 1000), rng.random() < 0.5
    result = n + 1 if after else n - 1
    return Item(f"{n}{after}", {"a": str(n), "w": "after" if after else "before"},
                f"The number {'after' if after else 'before'} {n} is {result}.", str(result), _near(result, rng))


def _parity(rng: random.Random) -> Item:
    n = rng.randrange(1000)
    word, other = ("even", "odd") if n % 2 == 0 else ("odd", "even")
    return Item(f"{n}", {"a": str(n)}, f"{n} is {word}.", word, (other,))


def _sequence(rng: random.Random) -> Item:
    start, step = rng.randrange(1, 50), rng.choice([1, 2, 3, 4, 5, 10])
    terms = [start + i * step for i in range(4)]
    result = start + 4 * step
    return Item(f"{start}/{step}", {"s": ", ".join(map(str, terms))}, f"The next number is {result}.", str(result), _near(result, rng))


def _story(rng: random.Random) -> Item:
    who, what = rng.choice(PEOPLE), rng.choice(ITEMS)
    plus = rng.random() < 0.5
    a, b = rng.randrange(2, 31), rng.randrange(1, 31)
    if not plus:
        a, b = max(a, b) + 1, min(a, b)
    result = a + b if plus else a - b
    verb = rng.choice(["gets", "buys", "finds", "receives"] if plus else ["loses", "sells", "gives away", "drops"])
    more = " more" if plus else " of them"
    return Item(f"{a}{'+' if plus else '-'}{b}", {"p": who, "i": what, "a": str(a), "b": str(b), "v": verb, "m": more},
                f"{who} has {result} {what}.", str(result), _near(result, rng))


ARITHMETIC = [
    Kind("sum", "arithmetic", _sum, weight=3.0, seen=[
        "[What is|What's|How much is|What does|What do you get for] {a} [+|plus|and] {b}?", "{a} [+|plus] {b}[?| =| = ?|]", "[Add|Please add|Add up|Add together] {a} and {b}.",
        "[What is|What's|Give me|Tell me|Find|I need] the [sum|total] of {a} and {b}[?|.]", "[Calculate|Compute|Work out|Solve|Evaluate|Do|Find] {a} [+|plus] {b}.",
        "[How much|What] [is|does] {a} plus {b} [equal|make|give]?", "If I [add|put] {b} to {a}, what do I get?", "Add {b} to {a}.",
        "[Sum|The sum]: {a} + {b}", "What do {a} and {b} [make|give|add up to|come to] [together|in all|in total|]?", "{a} and {b} together [are|is|make] [what|how much]?",
        "I have {a} and get {b} more. How many [is that|do I have]?", "[What|Which] number is {b} more than {a}?", "[The total of|The sum of] {a} and {b} is?",
        "What is {a} [increased by|added to] {b}?", "[How many|How much] are {a} and {b} [together|in all|in total]?", "[Tell me|Say|Show me|Give me] what {a} + {b} is.",
        "[Tell me|Give me|Find|Get] the result of {a} [+|plus] {b}.", "[Put|Take] {a} and {b} together. [What is the total|How much is it|What do you get]?"],
        held=["[Could you|Can you] [sum up|total] {a} and {b}?", "What's the answer to {a} + {b}?", "[When|If] you add {a} and {b}, what is the result?", "{a} plus {b} [equals|makes|gives] what?"]),
    Kind("difference", "arithmetic", _difference, weight=3.0, seen=[
        "[What is|What's|How much is|What does] {a} [-|minus|less|take away] {b}?", "{a} [-|minus] {b}[?| =| = ?|]", "[Subtract|Take|Please subtract|Deduct] {b} from {a}.",
        "[What is|What's|Give me|Tell me|Find|I need] the difference [between|of] {a} and {b}[?|.]", "[Calculate|Compute|Work out|Solve|Evaluate|Do|Find] {a} [-|minus] {b}.",
        "[How much|What] [is|does] {a} minus {b} [equal|make|give]?", "If I [take|subtract] {b} from {a}, what [do I get|is left|remains]?", "What [is left|remains] [of|from] {a} [after I take away|without|less] {b}?",
        "[Difference|The difference]: {a} - {b}", "I have {a} and lose {b}. How many [are left|do I have]?", "[What|Which] number is {b} less than {a}?", "What is {a} [decreased by|reduced by] {b}?",
        "By how much is {a} more than {b}?", "How much [more|bigger] is {a} than {b}?", "[Tell me|Say|Show me|Give me] what {a} - {b} is.", "[Tell me|Give me|Find|Get] the result of {a} [-|minus] {b}.",
        "[Remove|Take away] {b} from {a}. [What is left|How much is left|What do you get]?"],
        held=["[Could you|Can you] [subtract|take] {b} from {a}?", "What's the answer to {a} - {b}?", "[When|If] you take {b} away from {a}, what is the result?", "{a} minus {b} [equals|makes|gives] what?"]),
    Kind("product", "arithmetic", _product, weight=2.0, seen=[
        "[What is|What's|How much is|What does] {a} [×|*|x|times|multiplied by] {b}?", "{a} [×|*|x|times] {b}[?| =| = ?|]", "[Multiply|Please multiply] {a} [by|and|with] {b}.",
        "[What is|What's|Give me|Tell me|Find] the product of {a} and {b}[?|.]", "[Calculate|Compute|Work out|Solve|Evaluate|Do] {a} [×|*|x|times] {b}.",
        "[How much|What] [is|does] {a} times {b} [equal|make|give]?", "How many are {a} groups of {b}?", "[Tell me|Say|Show me|Give me] what {a} [×|*|times] {b} is.", "{a} boxes hold {b} each. How many in all?",
        "[Tell me|Give me|Find|Get] the result of {a} [×|*|x|times] {b}.", "[The product of|Product:] {a} and {b}[?|]", "What do I get when I multiply {a} [by|and] {b}?", "{a} rows of {b}[ make| are|:] how many?"],
        held=["[Could you|Can you] multiply {a} by {b}?", "What's the answer to {a} × {b}?", "[When|If] you multiply {a} by {b}, what is the result?", "{a} times {b} [equals|makes|gives] what?"]),
    Kind("quotient", "arithmetic", _quotient, weight=1.5, seen=[
        "[What is|What's|How much is] {a} [÷|/|divided by|over] {b}?", "{a} [÷|/|divided by] {b}[?| =| = ?|]", "[Divide|Please divide] {a} by {b}.", "[What is|What's|Give me|Tell me|Find] the quotient of {a} and {b}[?|.]",
        "[Calculate|Compute|Work out|Solve|Evaluate|Do] {a} [÷|/|divided by] {b}.", "How many times does {b} [go into|fit into] {a}?", "[Share|Split] {a} [among|between] {b}. [How many|How much] [each|does each get]?",
        "[Tell me|Say|Show me|Give me] what {a} [÷|/|divided by] {b} is.", "How much is {a} [split|shared] into {b} [equal parts|parts]?", "[Tell me|Give me|Find|Get] the result of {a} [÷|/|divided by] {b}.",
        "What do I get when I divide {a} by {b}?", "{a} divided by {b} [is|equals] [what|how much]?"],
        held=["[Could you|Can you] divide {a} by {b}?", "What's the answer to {a} / {b}?", "[When|If] you divide {a} by {b}, what is the result?"]),
    Kind("three", "arithmetic", _three, weight=1.2, seen=[
        "[What is|What's|How much is] {a} [+|plus] {b} [+|plus] {c}?", "{a} + {b} + {c}[?| =| = ?|]", "[Add|Add up|Sum up] {a}, {b} and {c}.", "[What is|What's|Give me|Find|Tell me] the [sum|total] of {a}, {b} and {c}[?|.]",
        "[Calculate|Compute|Work out|Solve] {a} + {b} + {c}.", "How much are {a}, {b} and {c} [together|in all|in total]?", "What do {a}, {b} and {c} [make|give|add up to|come to]?"],
        held=["[Could you|Can you] add {a}, {b} and {c}?", "What's the answer to {a} + {b} + {c}?", "If you add {a}, {b} and {c}, what is the result?"]),
    Kind("scaled", "arithmetic", _scaled, seen=[
        "[What is|What's|Give me|Tell me|Find|Calculate|Compute|Work out] the {w} of {a}[?|.]", "[What is|What's|How much is] {w} {a}?", "{w} of {a}?", "[Which|What] number is the {w} of {a}?", "[I need|Say|Show me|Get] the {w} of {a}.",
        "The {w} of {a} is [what|which number|how much]?", "[Take|Use] the number {a}. What is its {w}?"],
        held=["[Could you|Can you] [work out|give me] the {w} of {a}?", "How much would the {w} of {a} be?"]),
    Kind("neighbour", "arithmetic", _neighbour, seen=[
        "[What|Which] number [comes|is] [right |just |directly |]{w} {a}?", "[Tell me|Give me|Say|Name|Find] the number {w} {a}.", "What [comes|is] {w} {a}?", "The number {w} {a}?", "[What is|What's] the number [right |just |]{w} {a}?", "[Counting|When I count], what comes {w} {a}?"],
        held=["[Could you|Can you] [tell me|name] the number {w} {a}?", "{w} {a} comes which number?"]),
    Kind("parity", "arithmetic", _parity, seen=[
        "Is {a} [even or odd|odd or even|an even or an odd number]?", "[Tell me|Say|Find out|Check|Decide] [if|whether] {a} is [even or odd|odd or even].", "{a}: [even or odd|odd or even]?", "Is the number {a} [even or odd|odd or even]?", "What is {a}, [even or odd|odd or even]?",
        "Even or odd: {a}[?|]", "[Would you call|Do you call] {a} [even or odd|odd or even]?"],
        held=["[Could you|Can you] [tell|say] [if|whether] {a} is [even or odd|odd or even]?", "Which is {a}, [odd or even|even or odd]?"]),
    Kind("sequence", "arithmetic", _sequence, seen=[
        "What [comes|number comes] next[:|?] {s}[, ?|, ...|?|]", "[Continue|Complete] [the sequence|this sequence|the series|the row]: {s}[, ...|]", "{s}, [what comes next|what is next|and then]?", "[Which|What] number [follows|comes after] {s}?",
        "[Find|Give me|Tell me|Say] the next number [in|of] {s}.", "What is the next number in [the sequence|the series|the row|this list] {s}?"],
        held=["[Could you|Can you] continue {s}?", "{s}: which number is next?"]),
    Kind("story", "arithmetic", _story, weight=1.5, seen=[
        "{p} has {a} {i} and {v} {b}{m}. How many {i} does {p} have [now|then|]?", "{p} had {a} {i}. Then {p} {v} {b}{m}. How many {i} does {p} have [now|]?", "If {p} has {a} {i} and {v} {b}{m}, how many {i} does {p} have[ now| then|]?",
        "{p} has {a} {i}. {p} {v} {b}{m}. [How many are there|How many is that|How many now|How many {i} are there now]?", "At first {p} has {a} {i}. Later {p} {v} {b}{m}. [What is the number of {i}|How many {i}] [now|at the end]?"],
        held=["There are {a} {i} with {p}, who {v} {b}{m}. How many {i} does {p} have?", "{p} starts with {a} {i} and {v} {b}{m}. How many {i} in the end?"]),
]

# unit | in how many of the smaller | smaller unit | largest count asked
UNITS = [
    ("kilometre", 1000, "metre", 20), ("metre", 100, "centimetre", 20), ("centimetre", 10, "millimetre", 30), ("kilogram", 1000, "gram", 20),
    ("hour", 60, "minute", 12), ("minute", 60, "second", 12), ("day", 24, "hour", 7), ("week", 7, "day", 12), ("year", 12, "month", 12),
    ("litre", 1000, "millilitre", 20), ("dozen", 12, "egg", 12), ("tonne", 1000, "kilogram", 20), ("euro", 100, "cent", 20),
    ("dollar", 100, "cent", 20), ("century", 100, "year", 10), ("decade", 10, "year", 12), ("metre", 1000, "millimetre", 12),
]


def plural(word: str, n: int = 2) -> str:
    """`word` for `n` of it."""
    return word if n == 1 else {"century": "centuries", "dozen": "dozen"}.get(word, word + "s")


def _unit(rng: random.Random) -> Item:
    big, k, small, top = rng.choice(UNITS)
    n = rng.randrange(1, top + 1)
    key = f"{n}{big}{small}" if n > 2 and n != 10 else SEEN
    big_n, small_n = plural(big, n), plural(small)
    head = f"{n} {big_n}" if big != "dozen" else f"{n} dozen eggs"
    return Item(key, {"n": str(n), "b": big_n if big != "dozen" else "dozen", "s": small_n, "is": "is" if n == 1 else "are"},
                f"{head} {'is' if n == 1 else 'are'} {n * k} {small_n}.", str(n * k), _near(n * k, rng) + (str(n * k * 10), str(n * 10)))


def _unit_back(rng: random.Random) -> Item:
    big, k, small, top = rng.choice([u for u in UNITS if u[0] != "dozen"])
    n = rng.randrange(1, top + 1)
    key = f"{n}{big}{small}" if n > 2 and n != 10 else SEEN
    return Item(key, {"m": str(n * k), "b": plural(big), "s": plural(small)}, f"{n * k} {plural(small)} {'is' if n == 1 else 'are'} {n} {plural(big, n)}.",
                str(n), _near(n, rng) + (str(n * 10),))


MEASURES = [
    Kind("unit", "units", _unit, weight=2.5, seen=[
        "How many {s} are [there |]in {n} {b}?", "How many {s} [is|are|make|do you get from] {n} {b}?", "[Convert|Change|Turn|Translate] {n} {b} [to|into|in] {s}.", "[What is|What's|How much is|What are] {n} {b} in {s}?",
        "{n} {b} in {s}?", "{n} {b} [is|are|=|equals] how many {s}?", "[Tell me|Give me|Say|Find out] how many {s} {n} {b} [are|is|has|have].", "[Express|Write|Give|Show|State] {n} {b} in {s}.",
        "How many {s} does {n} {b} have?", "I have {n} {b}. How many {s} is that?", "{n} {b} to {s}[?|]", "[Tell me|Give me|Say] the number of {s} in {n} {b}.", "{n} {b}: how many {s}?"],
        held=["[Could you|Can you] convert {n} {b} to {s}?", "What number of {s} [makes up|is in] {n} {b}?", "If something is {n} {b}, how many {s} is it?"]),
    Kind("unit back", "units", _unit_back, weight=1.2, seen=[
        "How many {b} are [there |]in {m} {s}?", "How many {b} [is|are|make|do you get from] {m} {s}?", "[Convert|Change|Turn|Translate] {m} {s} [to|into|in] {b}.", "[What is|What's|How much is|What are] {m} {s} in {b}?", "{m} {s} in {b}?",
        "{m} {s} [is|are|=|equals] how many {b}?", "[Tell me|Give me|Say|Find out] how many {b} {m} {s} [are|is].", "[Express|Write|Give|Show|State] {m} {s} in {b}.", "I have {m} {s}. How many {b} is that?", "{m} {s} to {b}[?|]"],
        held=["[Could you|Can you] convert {m} {s} to {b}?", "If something is {m} {s}, how many {b} is it?"]),
]


def _day_step(rng: random.Random) -> Item:
    i, n, after = rng.randrange(7), rng.randrange(1, 8), rng.random() < 0.7
    result = DAYS[(i + n if after else i - n) % 7]
    word = "after" if after else "before"
    return Item(f"{i}{n}{after}", {"d": DAYS[i], "n": f"{n} day{'s' if n > 1 else ''}", "w": word}, f"{n} day{'s' if n > 1 else ''} {word} {DAYS[i]} is {result}.", result, tuple(d for d in DAYS if d != result))


def _day_next(rng: random.Random) -> Item:
    names, label = (DAYS, "day") if rng.random() < 0.5 else (MONTHS, "month")
    i, after = rng.randrange(len(names)), rng.random() < 0.5
    result = names[(i + 1 if after else i - 1) % len(names)]
    return Item(f"{names[i]}{after}", {"d": names[i], "l": label, "w": "after" if after else "before"}, f"The {label} {'after' if after else 'before'} {names[i]} is {result}.", result,
                tuple(d for d in names if d != result))


def _month_number(rng: random.Random) -> Item:
    i = rng.randrange(12)
    return Item(MONTHS[i], {"m": MONTHS[i]}, f"{MONTHS[i]} is month number {i + 1}.", str(i + 1), _near(i + 1, rng))


def _month_days(rng: random.Random) -> Item:
    i = rng.randrange(12)
    return Item(MONTHS[i], {"m": MONTHS[i]}, f"{MONTHS[i]} has {MONTH_DAYS[i]} days{' in a common year' if i == 1 else ''}.", str(MONTH_DAYS[i]), tuple(v for v in ("28", "30", "31") if v != str(MONTH_DAYS[i])))


def _iso(rng: random.Random) -> Item:
    y, m = rng.randrange(1900, 2100), rng.randrange(12)
    d = rng.randrange(1, MONTH_DAYS[m] + 1)
    return Item(f"{y}{m}{d}", {"t": rng.choice([f"{d} {MONTHS[m]} {y}", f"{MONTHS[m]} {d}, {y}"])}, f"{y}-{m + 1:02}-{d:02}", f"{y}-{m + 1:02}-{d:02}", (f"{y}-{(m + 1) % 12 + 1:02}-{d:02}", f"{y + 1}-{m + 1:02}-{d:02}"))


def _clock(rng: random.Random) -> Item:
    h, n = rng.randrange(1, 13), rng.randrange(1, 12)
    result = (h + n - 1) % 12 + 1
    return Item(f"{h}+{n}", {"h": str(h), "n": f"{n} hour{'s' if n > 1 else ''}"}, f"In {n} hour{'s' if n > 1 else ''} it will be {result} o'clock.", str(result), _near(result, rng))


DATES = [
    Kind("day step", "dates", _day_step, weight=1.5, seen=[
        "[What|Which] day [is|comes] {n} {w} {d}?", "[What|Which] day of the week is {n} {w} {d}?", "[Tell me|Give me|Say|Name|Find] the day {n} {w} {d}.", "{n} {w} {d} is [what|which] day?", "{n} {w} {d}?", "[What is|What's] the day {n} {w} {d}?", "[Which|What] weekday [is|do we have] {n} {w} {d}?"],
        held=["[Could you|Can you] [tell me|name] the day {n} {w} {d}?", "If I count {n} {w} {d}, [which|what] day is it?"]),
    Kind("neighbour day", "dates", _day_next, by_pair=True, weight=1.0, seen=[
        "[What|Which] {l} [comes|is] [right |just |]{w} {d}?", "[Tell me|Give me|Say|Name|Find] the {l} {w} {d}.", "[What is|What's] the {l} {w} {d}?", "The {l} {w} {d}?", "What {l} do we have {w} {d}?"],
        held=["[Could you|Can you] [tell me|name] the {l} {w} {d}?", "{w} {d} comes [which|what] {l}?"]),
    Kind("month number", "dates", _month_number, by_pair=True, weight=0.5, seen=[
        "[What|Which] [month number|number month|number] is {m}?", "{m} is [which|what] month [number|of the year]?", "[What is|What's|Give me|Tell me|Say] the number of the month {m}[?|.]", "The month {m} has [which|what] number?"],
        held=["[Could you|Can you] give the number of the month {m}?", "As a number, which month is {m}?"]),
    Kind("month days", "dates", _month_days, by_pair=True, weight=0.5, seen=[
        "How many days [are there in|does|are in] {m}[ have|]?", "[Tell me|Say|Give me] how many days {m} has.", "How long is {m}[ in days|]?", "The number of days in {m}?", "[What is|What's] the number of days in {m}?"],
        held=["[Could you|Can you] say how many days {m} has?", "{m} has how many days?"]),
    Kind("iso date", "dates", _iso, short=True, both=False, seen=[
        "[Write|Give|Put|Express] {t} [as an ISO date|in ISO format|in the ISO format|as ISO date].", "[What is|What's] {t} [as an ISO date|in ISO format]?", "[Convert|Change|Turn] {t} [to|into] [ISO format|an ISO date|the form YYYY-MM-DD].", "{t} as an ISO date[?|]", "[Write|Give] the date {t} as YYYY-MM-DD."],
        held=["[Could you|Can you] write {t} as an ISO date?", "How [is|do I write] {t} [written |]in ISO format?"]),
    Kind("clock", "dates", _clock, seen=[
        "It is {h} o'clock. What time [is it|will it be] in {n}?", "It's {h} o'clock now. What time will it be {n} later?", "[What time is it|What is the time] {n} after {h} o'clock?", "If it is {h} o'clock, what time [is it|will it be] in {n}?", "{n} after {h} o'clock is [what time|when]?"],
        held=["The clock shows {h} o'clock. [Which time|What time] will it show in {n}?", "Now it is {h} o'clock; what time is it {n} from now?"]),
]


def _larger(rng: random.Random) -> Item:
    top = rng.choice([20, 100, 1000])
    a, b = rng.sample(range(top), 2)
    big = rng.random() < 0.5
    r = max(a, b) if big else min(a, b)
    o = a + b - r
    word = rng.choice(["larger", "bigger", "greater"] if big else ["smaller", "less", "lower"])
    return Item(f"{a},{b},{big}", {"a": str(a), "b": str(b), "w": word}, f"{r} is {word} than {o}.", str(r), (str(o),))


def _is_more(rng: random.Random) -> Item:
    top = rng.choice([20, 100, 1000])
    a, b = rng.sample(range(top), 2)
    big = rng.random() < 0.5
    yes = (a > b) == big
    word = rng.choice(["larger than", "bigger than", "greater than", "more than"] if big else ["smaller than", "less than", "lower than"])
    told = word if yes else "not " + word
    return Item(f"{a},{b},{big}", {"a": str(a), "b": str(b), "w": word}, f"{'Yes' if yes else 'No'}, {a} is {told} {b}.", "Yes" if yes else "No", ("No" if yes else "Yes",))


def _size(rng: random.Random) -> Item:
    i, j = rng.sample(range(len(SIZES)), 2)
    big = rng.random() < 0.6
    r = max(i, j) if big else min(i, j)
    o = i + j - r
    word = rng.choice(["bigger", "larger"]) if big else "smaller"
    cap = SIZES[r][0].upper() + SIZES[r][1:]
    return Item(f"{i},{j},{big}", {"a": SIZES[i], "b": SIZES[j], "w": word}, f"{cap} is {word} than {SIZES[o]}.", SIZES[r], (SIZES[o],))


COMPARISONS = [
    Kind("larger", "comparisons", _larger, weight=1.3, seen=[
        "[Which|What] [number |]is {w}[:|,] {a} or {b}?", "[Which|What] is {w}, {a} or {b}?", "[Tell me|Say|Find|Name|Pick|Give me|Choose] the {w} [number|one] of {a} and {b}.", "Is {a} or {b} the {w} [number|one]?", "{a} or {b}: which is {w}?",
        "[Of|Between] {a} and {b}, which is {w}?", "Which of {a} and {b} is {w}?", "Compare {a} and {b}. Which is {w}?", "{a} and {b}, [which one is|what is] {w}?", "[What is|What's] {w}, {a} or {b}?"],
        held=["[Could you|Can you] [tell|say] which is {w}, {a} or {b}?", "Out of {a} and {b}, which number is {w}?"]),
    Kind("is more", "comparisons", _is_more, weight=1.3, seen=[
        "Is {a} {w} {b}?", "[Tell me|Say|Check|Decide] [if|whether] {a} is {w} {b}.", "{a} is {w} {b}, [right|true|yes or no|correct]?", "[True or false|Yes or no|Right or wrong]: {a} is {w} {b}[.|?]", "Is it [true|right|correct] that {a} is {w} {b}?", "Is the number {a} {w} {b}?", "Would you say {a} is {w} {b}?"],
        held=["[Could you|Can you] [tell|say] [if|whether] {a} is {w} {b}?", "Am I right that {a} is {w} {b}?"]),
    Kind("size", "comparisons", _size, weight=1.5, seen=[
        "[Which|What] is {w}[:|,] {a} or {b}?", "Is {a} or {b} {w}?", "[Tell me|Say|Find|Name|Pick|Choose] the {w} [one|thing] of {a} and {b}.", "{a} or {b}: which is {w}?", "[Of|Between] {a} and {b}, which is {w}?", "Which of {a} and {b} is {w}?",
        "Compare {a} and {b}. Which is {w}?", "{a} and {b}, which one is {w}?"],
        held=["[Could you|Can you] [tell|say] which is {w}, {a} or {b}?", "Out of {a} and {b}, which one is {w}?"]),
]
