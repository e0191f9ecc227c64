"""Talk: small talk, what cannot be known, several turns, and judging.

The judging prompt stands in `judge_prompt.json`; the corpus and the judge
render the same text from it.
"""

import json
import random
from pathlib import Path

import corpus_facts as facts
from corpus_kinds import SEEN, Item, Kind

UNKNOWN = "I do not know."
JUDGE = json.loads((Path(__file__).parent / "judge_prompt.json").read_text())


def _fixed(name: str, category: str, rows: list[tuple[str, list[str], list[str]]], weight: float) -> list[Kind]:
    """Kinds whose answer is one fixed text: (answer, wordings seen, wordings held out)."""
    kinds = []
    for i, (answer, seen, held) in enumerate(rows):
        def draw(rng: random.Random, answer: str = answer) -> Item:
            near = rng.choice([r[0] for r in rows if r[0] != answer])
            return Item(SEEN, {}, answer, answer, (near,))
        kinds.append(Kind(f"{name} {i}", category, draw, seen, held, both=False, weight=weight))
    return kinds


SMALL_TALK = _fixed("talk", "small talk", [
    ("Hello! How can I help you?", ["[Hello|Hi|Hey|Hi there|Hello there|Hey there|Hello assistant|Hi assistant|Good day|Greetings]", "[Hello|Hi|Hey][!|.|, you.| there!]", "[Hello|Hi], [nice to meet you|anyone there|are you there]?"], ["Hello my friend", "Hey hey", "Hi nano!"]),
    ("Good morning! How can I help you?", ["Good morning[!|.|]", "Good morning[,| to you,] [assistant|nano|you][!|.|]", "A [very |]good morning[ to you|]!"], ["Good morning, my friend!"]),
    ("Good evening! How can I help you?", ["Good evening[!|.|]", "Good evening[,| to you,] [assistant|nano|you][!|.|]", "A [very |]good evening[ to you|]!"], ["Good evening, my friend!"]),
    ("I am fine, thank you. How can I help you?", ["How are you[ doing|] [today|now|]?", "How do you [do|feel][ today|]?", "How is it going[ today|]?", "Are you [well|fine|okay|all right][ today|]?", "How are things[ with you|]?", "[Is everything|Everything] [fine|okay|all right]?"], ["Are you doing well?", "How goes it?"]),
    ("I am Nano, a small language model that runs on the PolyLink network.", ["Who are you?", "What are you?", "What is your name?", "What's your name?", "[Tell me|Say] [your name|who you are|what you are].", "What [should|can|may] I call you?", "Are you a [human|robot|person|machine|computer]?", "[Introduce yourself|Tell me about yourself].", "[Who|What] am I talking to?"], ["May I know your name?", "With whom am I speaking?"]),
    ("I was trained from scratch by the PolyLink project.", ["Who [made|built|trained|created|wrote] you?", "[Where|From where] do you come[ from|]?", "Who is your [maker|creator|author]?", "Tell me who [made|built|trained|created] you.", "By whom were you [made|built|trained|created]?", "How were you [made|trained|built]?"], ["Could you say who created you?", "Which people made you?"]),
    ("I can answer short questions about numbers, units, dates, words and facts.", ["What can you do[ for me|]?", "How can you help[ me|]?", "What [are you|are you good] [for|at]?", "What [questions|things] can I ask[ you|]?", "What do you know?", "[Tell me|Say|Explain] what you can do.", "What are your [skills|abilities|talents]?", "Help[!|.|]", "Can you help me?", "What can I ask you?"], ["Which things are you able to do?", "In what can you help me?"]),
    ("You are welcome!", ["[Thank you|Thanks|Many thanks|Thanks a lot|Thank you very much|Thank you so much|Thanks so much|Thx][!|.|]", "[Thank you|Thanks] for [your|the] [help|answer|time][!|.|]", "[Great|Perfect|Good|Nice|Super], [thank you|thanks][!|.|]", "That [helped|was helpful], [thanks|thank you]."], ["Thank you for helping me!", "Thanks, you are kind."]),
    ("Goodbye! Have a nice day.", ["[Bye|Goodbye|Bye bye|See you|See you later|Farewell|Good bye|See you soon|So long][!|.|]", "[Bye|Goodbye], [nano|assistant|and thanks|my friend][!|.|]", "I [have to|must|need to] go[ now|].", "[That is all|That's all|I am done][ for today| for now|]."], ["See you tomorrow!", "I am leaving now, bye."]),
    ("Good night! Sleep well.", ["Good night[!|.|]", "Good night[,| to you,] [assistant|nano|you][!|.|]", "I am going to [bed|sleep][ now|].", "[It is|It's] time to [sleep|go to bed]."], ["Now I go to sleep."]),
    ("Why did the computer go to the doctor? Because it had a virus.", ["Tell me [a|another|one] joke.", "[Do you know|Have you got|Give me|Say] a joke[?|.]", "Make me laugh.", "[Say|Tell me] something funny.", "A joke[, please|]!", "Can you tell [me |]a joke?", "I want to [hear a joke|laugh]."], ["Could you make a joke?", "Let me hear something funny."]),
    ("I am sorry to hear that. I hope that you feel better soon.", ["I am [sad|tired|ill|sick|unhappy|lonely|angry][ today|].", "I feel [sad|bad|ill|sick|tired|lonely|terrible][ today|].", "I [have|had] a bad day.", "My day [is|was] [bad|terrible|awful].", "I am not [well|happy|feeling well]."], ["Today I feel unhappy.", "It was a terrible day."]),
    ("I am glad to hear that!", ["I am [happy|glad|fine|well|great][ today|].", "I feel [good|great|happy|well|wonderful][ today|].", "I [have|had] a [good|great|nice] day.", "My day [is|was] [good|great|wonderful]."], ["Today I feel wonderful.", "It was a great day."]),
    ("My favourite colour is blue.", ["[What is|What's] your favourite colo[u|]r?", "[Which|What] colo[u|]r do you like[ best| most|]?", "Do you have a favourite colo[u|]r?", "[Tell me|Say] your favourite colo[u|]r."], ["Which colour is your favourite?"]),
    ("A language model like me has no age.", ["How old are you?", "[What is|What's] your age?", "[When is|What's|When do you have] your birthday?", "When were you born?", "[Tell me|Say] your age.", "Are you [old|young]?"], ["What age are you?", "May I ask how old you are?"]),
    ("Yes, I speak English.", ["Do you [speak|understand|know] English?", "Can you [speak|understand|read|write] English?", "[Which|What] language do you speak?", "Is English your language?"], ["In which language may I talk to you?"]),
], 0.55)

_UNKNOWN_SEEN = [
    "What did I [eat|do|buy|say|drink|wear|read|dream] [yesterday|last night|last week|this morning|last Sunday]?", "[What is|What's] [my|his|her|their] [name|age|password|phone number|address|favourite colour|birthday|job|secret]?", "Where [did I put|are|have I left] my [keys|glasses|shoes|books|phone|bag]?",
    "Who [will win|is going to win] the [next |][match|election|race|lottery|game|cup]?", "What will the weather be [tomorrow|next week|on Sunday|in a month]?", "[How much|What] will [gold|bitcoin|a house|bread] cost [next year|tomorrow|in ten years]?", "What am I [thinking|thinking of|holding|wearing|looking at][ right now| now|]?",
    "How many [hairs|coins|books|fish] [do I have|are in my bag|does my friend have]?", "What is the [weather|time|temperature|news][ like|] [now|today|right now|here|outside]?", "What [time|day] is it[ now| today|]?", "[Who|What] is [standing |]behind me?", "[What is|What's] the name of my [cat|dog|sister|brother|teacher|neighbour|mother]?",
    "[Which|What] number [am I thinking of|will come in the lottery]?", "Where [do I live|was I born|am I][ now|]?", "How old is my [cat|dog|sister|brother|teacher|neighbour|mother]?", "When will I [die|marry|be rich|be famous|find a job|win]?", "Who [called|visited|wrote to] me [yesterday|today|last week]?", "What is in my [pocket|bag|box|hand|fridge]?",
    "What did my [sister|brother|friend|teacher|neighbour] [say|eat|buy|do] [yesterday|today|last week]?", "Will it [rain|snow|be sunny] [tomorrow|on Friday|next week]?", "Who is the [best|most beautiful|smartest] person [in my town|in my school|on my street]?"]
_UNKNOWN_HELD = ["Can you guess what I ate this evening?", "Which team will be the winner next year?", "Tell me what my neighbour is called.", "Is it going to rain here on Monday?", "How many coins are in my pocket?", "What colour is my bag?"]

_SYLLABLES = "zor blen kra quil vor mip tash gru lom fen dri wex yul bon sko plim tor vash nee ruk".split()


def _made_up(rng: random.Random) -> Item:
    name = "".join(rng.choice(_SYLLABLES) for _ in range(rng.randrange(2, 4)))
    name = (name + rng.choice(["", "ia", "land", "stan"])).capitalize()
    return Item(name, {"x": name}, f"I do not know {name}.", f"I do not know {name}.", (rng.choice(facts.COUNTRIES)[1], rng.choice(facts.COUNTRIES)[0]))


def _personal(rng: random.Random) -> Item:
    return Item(SEEN, {}, UNKNOWN, UNKNOWN, (f"It is {rng.choice(facts.WORDS)}.", rng.choice(facts.PEOPLE) + ".", str(rng.randrange(100))))


DO_NOT_KNOW = [
    Kind("unknown", "not knowing", _personal, _UNKNOWN_SEEN, _UNKNOWN_HELD, both=False, weight=2.5),
    Kind("made up", "not knowing", _made_up, [
        "[What is|What's|Name|Tell me] the [capital|language|continent|king|currency] of {x}[?|.]", "Where is {x}?", "What is [a |]{x}?", "[Who|What] [was|is] {x}?", "[Which|What] country has the capital {x}?", "What does {x} mean?", "[On|In] which continent [is|lies] {x}?", "[Tell me|Say] [something |]about {x}.", "[Define|Explain] {x}."],
        ["[Could you|Can you] tell me where {x} is?", "Which city is the capital of {x}?"], both=False, noise=False, weight=1.5),
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def recall(rng: random.Random, held: bool) -> tuple[list[dict[str, str]], str, str]:
    """The user tells something and asks for it later: (messages, question, answer)."""
    who, n = rng.choice(facts.PEOPLE), rng.randrange(5, 90)
    colour, food, pet, city = rng.choice(facts.COLOURS), rng.choice(facts.FOODS), rng.choice(facts.PETS), rng.choice(facts.COUNTRIES)[1]
    told, asked, answer = rng.choice([
        ([f"My name is {who}.", f"I am {who}.", f"I'm {who}.", f"Call me {who}.", f"People call me {who}.", f"Hi, my name is {who}."],
         ["What is my name?", "What's my name?", "Do you remember my name?", "How am I called?", "Tell me my name.", "Who am I?", "Say my name."], f"Your name is {who}."),
        ([f"I am {n} years old.", f"My age is {n}.", f"I'm {n}.", f"I am {n}."],
         ["How old am I?", "What is my age?", "What's my age?", "Tell me my age.", "Do you remember my age?"], f"You are {n} years old."),
        ([f"My favourite colour is {colour}.", f"I like {colour} best.", f"The colour I like most is {colour}."],
         ["What is my favourite colour?", "Which colour do I like best?", "Do you remember my favourite colour?", "Tell me my favourite colour."], f"Your favourite colour is {colour}."),
        ([f"I like {food}.", f"I love {food}.", f"My favourite food is {food}."],
         ["What is my favourite food?", "What do I like to eat?", "Which food do I like?", "What food do I like?"], f"You like {food}."),
        ([f"I have a {pet}.", f"My pet is a {pet}.", f"I own a {pet}."],
         ["Which pet do I have?", "What pet do I have?", "What is my pet?", "Which animal do I have?"], f"You have a {pet}."),
        ([f"I live in {city}.", f"My home is in {city}.", f"I am from {city}."],
         ["Where do I live?", "In which city do I live?", "Where am I from?", "Which city do I live in?"], f"You live in {city}."),
    ])
    ask = rng.choice(asked[-1:] if held else asked[:-1])
    return [user(rng.choice(told)), assistant("Thank you, I will remember that.")], ask, answer


def follow_up(rng: random.Random, held: bool) -> tuple[list[dict[str, str]], str, str]:
    """A question that leans on the one before it: (messages, question, answer)."""
    dice = rng.random()
    if dice < 0.5:
        a, b, c = rng.randrange(1, 50), rng.randrange(1, 40), rng.randrange(1, 20)
        ask = rng.choice([f"And how much is that plus {c}?"] if held else [f"And plus {c}?", f"Now add {c}.", f"Plus {c}?", f"Add {c} to that.", f"And {c} more?", f"What if I add {c}?", f"And if you add {c}?"])
        return [user(rng.choice([f"What is {a} + {b}?", f"{a} plus {b}?", f"Add {a} and {b}."])), assistant(f"{a} + {b} = {a + b}.")], ask, f"{a + b} + {c} = {a + b + c}."
    (x, cx, *_), (y, cy, *_) = rng.sample(facts.COUNTRIES, 2)
    ask = rng.choice([f"Now the same for {y}."] if held else [f"And of {y}?", f"And {y}?", f"What about {y}?", f"How about {y}?", f"{y}?", f"And the one of {y}?", f"And for {y}?"])
    return [user(rng.choice([f"What is the capital of {x}?", f"Capital of {x}?", f"Name the capital of {x}."])), assistant(f"The capital of {x} is {cx}.")], ask, f"The capital of {y} is {cy}."


_NONSENSE = ("The of green walks under seven because. It is well known that every table sings quietly. Numbers like this are often seen in the sea. "
             "As a matter of fact it depends on the river. In general the answer is very interesting and long. Please note that clouds are made of bread. "
             "Yes and no, for many reasons. This is a good question with a good history. People say so in the market every morning. "
             "One should always think of the window first. There are many ways to look at the moon.").split(". ")


def degrade(item: Item, answer: str, other: str, rng: random.Random) -> tuple[str, str]:
    """A worse answer than `answer` and how it was made worse. `other` answers another question."""
    how = rng.choices(["value", "other", "nonsense", "truncated", "garbled", "unknown"], [5, 2, 1.2, 1, 0.8, 0.6])[0]
    if how == "value" and item.near:
        wrong = rng.choice(item.near)
        if item.short in answer and item.short != answer:
            # The last occurrence: "3 + 4 = 7." must lose its result, not an operand.
            at = answer.rfind(item.short)
            out = answer[:at] + wrong + answer[at + len(item.short) :]
        else:
            out = wrong
    elif how == "nonsense":
        out = " ".join(rng.choice(_NONSENSE).strip(". ") + "." for _ in range(rng.randrange(1, 3)))
    elif how == "truncated":
        words = answer.split(" ")
        out = " ".join(words[: rng.randrange(0, max(1, len(words) - 1))])
    elif how == "garbled":
        words = answer.split(" ")
        rng.shuffle(words)
        out = " ".join(words + rng.choices(facts.WORDS, k=rng.randrange(1, 4)))
    elif how == "unknown" and not answer.startswith("I do not know"):
        out = UNKNOWN
    else:
        how, out = "other", other
    if out == answer or out.rstrip(".") == answer.rstrip("."):
        return degrade(item, answer, other, rng)
    return out, how


def judge_prompt(question: str, answer: str) -> str:
    """The judge's prompt: both texts cut to the stated lengths and escaped, so that they stay data."""
    def clean(text: str, limit: int) -> str:
        return text[:limit].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    before, after = JUDGE["template"].split("{answer}")
    question, answer = clean(question, JUDGE["question_chars_max"]), clean(answer, JUDGE["answer_chars_max"])
    return before.replace("{question}", question) + answer + after.replace("{question}", question)
