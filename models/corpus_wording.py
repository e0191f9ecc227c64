"""Wording: how one question becomes thousands of different sentences.

A template is text with `[a|b|c]` alternatives (nested ones too) and `{slot}`
places. `expand` picks one alternative at each fork; `dress` puts an opener
before and a closer behind, and adds the noise of real users: lost capitals,
lost or doubled question marks, a typing slip. Whole templates, openers and
closers are held out from training, so that the evaluation can ask in words
that the model never saw.
"""

import random
import re

_INNERMOST = re.compile(r"\[([^\[\]]*)\]")

OPENERS = [
    "", "Hi! ", "Hello! ", "Hey, ", "Hi, ", "Hello, ", "Please tell me: ", "Please tell me, ", "Please answer: ", "Please help me: ",
    "Can you tell me: ", "Could you tell me: ", "Quick question: ", "A quick question: ", "Question: ", "I have a question: ",
    "I have a question. ", "I would like to know: ", "I'd like to know: ", "I want to know: ", "I need to know: ", "Help me: ",
    "So, ", "Okay, ", "OK, ", "Well, ", "Now, ", "Alright, ", "Next: ", "Next question: ", "Another question: ", "One more: ",
    "Please, ", "Good morning! ", "Good evening. ", "Hello there! ", "Hi there, ", "Excuse me, ", "Sorry to bother you. ",
    "My teacher asks: ", "For my homework: ", "My son wants to know: ", "For a quiz: ", "Quiz time! ", "Let me ask you: ",
    "Let me ask: ", "Answer this: ", "Answer me this: ", "Try this one: ", "Here is one for you: ", "Do you know: ", "Tell me: ",
    "Just curious: ", "I was wondering, ", "I wonder: ", "Q: ", "Hmm, ", "Dear assistant, ", "Assistant, ", "Remind me: ",
    "This is easy: ", "I forgot this: ", "I am not sure about this: ", "Test: ", "First question: ", "Last question: ",
]
OPENERS_HELD = ["Greetings! ", "Could you please help: ", "Riddle me this: ", "My friend asked me: ", "Here comes a question: ", "Let's see, "]

CLOSERS = [
    "", " Thanks!", " Thank you!", " Thanks.", " Thank you.", " Please.", " Please answer.", " Please help.", " Thanks in advance.",
    " I need to know.", " Do you know?", " Can you help?", " Can you help me?", " It is for school.", " It is for a quiz.",
    " I forgot.", " I am not sure.", " Tell me please.", " Answer please.", " Quick!", " Any idea?", " I am curious.",
    " It's for my homework.", " My teacher asked.", " Help me please.", " Cheers!", " :)", " ...", " Go!", " Be brief.",
]
CLOSERS_HELD = [" Much appreciated!", " Would you know that?", " I keep forgetting.", " Ta!"]

# Asking for the other of the two forms of an answer.
ASK_SHORT = [
    " Just the answer.", " Only the answer, please.", " Give only the answer.", " Answer with nothing else.", " In short.",
    " Short answer please.", " No sentence, just the answer.", " Reply with the answer only.", " Only the result.",
    " Just give me the answer.", " The answer alone is enough.", " One short answer.", " Keep it short.",
]
ASK_SENTENCE = [
    " Answer in a sentence.", " Answer in a full sentence.", " Please use a full sentence.", " Reply in a complete sentence.",
    " Use a whole sentence.", " Say it in a sentence.", " In a full sentence, please.", " Write a full sentence.",
    " I want a complete sentence.", " Answer with a whole sentence.",
]

SYSTEM = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.", "You answer questions.",
    "You are a careful assistant.", "Answer the user's questions.", "You are Nano.", "Be helpful and brief.", "You are a teacher.",
    "You are an assistant that answers briefly.", "Answer truthfully.", "You are a polite and helpful assistant.",
]

_LOWERABLE = set("""What Which Who How When Where Is Are Does Do Can Could Tell Give Find Name Say Write Put Sort Order Arrange Count
Work Calculate Compute Add Take Subtract Multiply Divide Convert Turn Change Spell Please The A An In On If Of Express Show List
Explain Define Describe Translate State Let I'd Now Suppose Today It There Between Out Pick Choose Decide Compare Double Halve
Reverse Repeat Type Complete Continue Fill For From At""".split())


def expand(template: str, rng: random.Random, slots: dict[str, str]) -> str:
    """One of the sentences that `template` stands for, its slots filled."""
    text = template
    while True:
        match = _INNERMOST.search(text)
        if match is None:
            break
        choice = rng.choice(match.group(1).split("|"))
        text = text[: match.start()] + choice + text[match.end() :]
    for name, value in slots.items():
        text = text.replace("{" + name + "}", value)
    assert "{" not in text, (template, text)
    return re.sub(r"  +", " ", text).strip()


def _slip(text: str, rng: random.Random) -> str:
    """One typing slip in one long lower-case word: a letter lost, doubled, or two swapped."""
    words = text.split(" ")
    places = [i for i, w in enumerate(words) if len(w) >= 5 and w.isalpha() and w.islower()]
    if not places:
        return text
    i = rng.choice(places)
    word = words[i]
    at = rng.randrange(1, len(word) - 1)
    words[i] = rng.choice([
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
    ])
    return " ".join(words)


def dress(core: str, rng: random.Random, *, held: bool, noise: bool, closer: str | None = None) -> str:
    """`core` with an opener, a closer and the noise of real users.

    `held` draws from the openers and closers that training never sees.
    `noise` is off where the letters themselves are the question. `closer`
    fixes the closer (a wish about the form of the answer).
    """
    openers, closers = (OPENERS_HELD, CLOSERS_HELD) if held else (OPENERS, CLOSERS)
    text = core
    if noise:
        if rng.random() < 0.12 and text.endswith("?"):
            text = text[:-1]
        elif rng.random() < 0.03 and text.endswith("?"):
            text += rng.choice(["?", "!", "??"])
        elif rng.random() < 0.10 and text.endswith("."):
            text = text[:-1]
        if not held and rng.random() < 0.03:
            text = _slip(text, rng)
    first = text.split(" ", 1)[0].rstrip(",:'")
    opener = rng.choice(openers) if rng.random() < 0.35 else ""
    if opener and not opener.endswith(("! ", ". ")) and first in _LOWERABLE and rng.random() < 0.7:
        text = text[0].lower() + text[1:]
    tail = closer if closer is not None else (rng.choice(closers) if rng.random() < 0.2 else "")
    if tail and text[-1] not in "?.!":
        text += rng.choice(["?", "."])
    text = opener + text + tail
    if noise:
        dice = rng.random()
        if dice < 0.12:
            text = text.lower()
        elif dice < 0.13:
            text = text.upper()
    return text
