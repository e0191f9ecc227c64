"""Golden values for tokenizers and chat templates, so that the Rust tests need neither.

    python make_tokenizer_goldens.py

trains small tokenizers of the families in use (`goldens/tokenizers/*.json`) on the
texts below, and writes what transformers makes of difficult texts with them
(`goldens/tokenizers.json`) and of conversations with templates that use what real
ones use (`goldens/templates.json`).
"""

import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent / "goldens"
VOCABULARY = 800

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's what they've said, and I'll say it again: don't!",
    "def main():\n    for i in range(10):\n        print(f\"{i}: {i ** 2}\")\n\n\nif __name__ == '__main__':\n\tmain()",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Zürich\", \"days\": 3}}",
    "Grüße aus Köln, es ist schön hier. Die Straße heißt Übermäßig, 1.234,56 €.",
    "L'été dernier, j'ai mangé des crêpes à Besançon. Où êtes-vous allés ?",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "敏捷的棕色狐狸跳过了懒狗。今天天气很好,我们去公园吧。",
    "今日はとても良い天気ですね。東京タワーへ行きましょう。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "Numbers 1 12 123 1234 12345 3.14159 1e-9 0x1F 2024-12-31 23:59",
]

# A name each: long ones would otherwise stand in the file for every tokenizer.
TEXTS = [
    "",
    " ",
    "a",
    "Hello world",
    " Hello  world ",
    "  leading and trailing   ",
    "line\nline\r\nline\n\n\n  indented\n\t\ttabs\t",
    "it's IT'S we'Ll I'D they'VE ’s",
    "1 12 123 1234 12345 123456 1,234,567.89 ½ ² Ⅷ ٣٤٥ 一二三",
    "snake_case CamelCase HTTPServer kebab-case x2y3 a.b.c",
    "Grüße, Straße, façade, naïve, Ærøskøbing, Łódź, İstanbul",
    "e\u0301 vs \u00e9, n\u0303 vs \u00f1, \ufb01 ligature, \u212b, \u1e9b\u0323",
    "你好,世界!今天天气很好。",
    "東京タワー カタカナ ｶﾀｶﾅ ＡＢＣ１２３",
    "안녕하세요 세계 \u1112\u1161\u11ab\u1100\u1173\u11af",
    "مرحبا بالعالم ـــ َُِ",
    "नमस्ते दुनिया क्षत्रिय",
    "ไทย ภาษาไทยไม่มีช่องว่าง",
    "שלום עולם \u202bRTL\u202c \u200fmark",
    "👋 😀😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 ❤️ #️⃣",
    "zero\u200bwidth\u200cjoin\u200der\u2060word\ufeffbom",
    "nul\u0000 bell\u0007 esc\u001b[31m del\u007f nel\u0085 ls\u2028ps\u2029",
    "\u00a0nbsp\u2003em\u3000ideographic\u202fnarrow",
    "a" * 70,
    " " * 40 + "x" + " " * 17,
    "\n" * 9,
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "«guillemets» “quotes” ‘single’ – — … • §¶",
    "x² + y₁ ≤ ∑∞ √2 ∂ℝ → ⇔ ∀∃ 𝔘𝔫𝔦 𝒳",
    "http://example.org/a?b=c&d=%20#e user@example.org C:\\path\\file",
    "<s> </s> <unk> <|end|> <|begin|> <tool_call>\n{}</tool_call> <0x41> ▁▁ Ġ Ċ",
    "<|begin|>user<|end|>\n\nHi<|end|>",
    "text<|end|>text <|end|> text",
    "\U0001d11e \U00020bb7 \U0010fffd \ue000 \uf8ff",
    "mixed 中文English混合 text日本語text",
    "...!!!??? --- === ***",
    "\t\n \r\n \x0b\x0c",
    "I'm 25% sure; it costs $3.50 (or £2.80)?",
    "ǅ ǆ ß ſ ﬀ ŉ ΐ և",
    "Ω≈ç√∫˜µ≤≥÷ åß∂ƒ©˙∆˚¬…æ",
    "\u0e33\u0e33\u0e33 \u0300\u0301\u0302",
    "end with space ",
    "end with newline\n",
]

# The way in which families cut texts into words, written anew: contractions; words with one sign before them; digits
# (three at a time, one at a time); signs with line ends after them; line ends; blanks.
WORDS = {
    "threes": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "ones": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "cases": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def byte_level(words: str, normalizer=None, first=True) -> Tokenizer:
    t = Tokenizer(models.BPE(ignore_merges=first))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(WORDS[words]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    t.add_special_tokens(["<|begin|>", "<|end|>"])
    t.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    if first:
        begin = t.token_to_id("<|begin|>")
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])])
    return t


def learnt_pieces() -> dict:
    """Vocabulary and merges of BPE over characters."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=VOCABULARY, show_progress=False))
    return json.loads(t.to_str())["model"]


def sentence_piece(kind: str) -> Tokenizer:
    """BPE over characters with byte fallback: blanks become U+2581."""
    t = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replace = normalizers.Replace(" ", "▁")
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "prepend":
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
        t.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)])
    elif kind == "metaspace":
        t.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
        t.decoder = decoders.Sequence([*ends, decoders.Strip(" ", 1, 0)])
    else:
        t.normalizer = replace
        t.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        t.decoder = decoders.Sequence(ends)
    names = ["<unk>", "<s>", "</s>", "<|begin|>", "<|end|>"]
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    # The bytes are part of the vocabulary, not added tokens.
    learnt = learnt_pieces()
    vocabulary = {piece: i for i, piece in enumerate([*names, *fallback, *sorted(learnt["vocab"], key=learnt["vocab"].get)])}
    merges = [tuple(m) for m in learnt["merges"]]
    t.model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    t.add_special_tokens(names)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t


def unigram() -> Tokenizer:
    """Pieces as BPE finds them, the earlier the likelier: the trainer of Unigram gives others in every run."""
    pieces = learnt_pieces()["vocab"]
    names = ["<unk>", "<s>", "</s>", "<|begin|>", "<|end|>"]
    scored = [(name, 0.0) for name in names] + [(piece, -2.0 - rank / 64 + 0.5 * len(piece)) for piece, rank in sorted(pieces.items(), key=lambda p: p[1])]
    t = Tokenizer(models.Unigram(scored, 0, False))
    t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    t.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    t.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    t.add_special_tokens(names)
    t.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return t


FAMILIES = {
    "bytes-threes": lambda: byte_level("threes"),
    "bytes-ones-nfc": lambda: byte_level("ones", normalizers.NFC(), first=False),
    "bytes-cases": lambda: byte_level("cases"),
    "pieces-prepend": lambda: sentence_piece("prepend"),
    "pieces-metaspace": lambda: sentence_piece("metaspace"),
    "pieces-replace": lambda: sentence_piece("replace"),
    "unigram": unigram,
}

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather in a city – \"today\" & <soon>", "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Zürich", "東京"]}, "days": {"type": "integer", "minimum": 1, "default": 3}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "noop", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2, "scale": 0.5, "exact": True, "note": None, "list": [1, 2.0, 1e-7, 12345678901234567890]}}}
PLAIN = [{"role": "user", "content": "Hi"}]
TALK = [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "What's 2 < 3 & \"4\"?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes. "}, {"role": "user", "content": " Grüße, 你好 👍🏽\n\ttab  "}]
CALLS = [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "{\"temp\": 21.5}", "tool_call_id": "call_1", "name": "get_weather"}, {"role": "tool", "content": "ok", "tool_call_id": "call_2", "name": "noop"}]

TEMPLATES = {
    "tags": "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] | trim + eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}",
    "system_first": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = '<<SYS>>\\n' ~ messages[0].content ~ '\\n<</SYS>>\\n\\n' %}{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate, not ' ~ m.role) }}{% endif %}{% if loop.index0 == 0 %}{% set content = system + m['content'] %}{% else %}{% set content = m['content'] %}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "tools_json": "{%- if tools %}\n    {{- '<|system|>\\n# Tools\\n\\n<tools>' }}\n    {%- for tool in tools %}\n        {{- '\\n' }}\n        {{- tool | tojson }}\n    {%- endfor %}\n    {{- '\\n</tools>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n    {%- if message.role == 'assistant' and message.tool_calls %}\n        {{- '<|assistant|>' }}\n        {%- for call in message.tool_calls %}\n            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}\n            {{- '\\n<tool_call>\\n{\"name\": \"' + call.name + '\", \"arguments\": ' }}\n            {{- call.arguments | tojson }}\n            {{- '}\\n</tool_call>' }}\n        {%- endfor %}\n    {%- elif message.role == 'tool' %}\n        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|user|>' }}{%- endif %}\n        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}\n        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|end|>\\n' }}{%- endif %}\n    {%- else %}\n        {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|assistant|>\\n' }}\n{%- endif %}\n",
    "namespace_think": "{%- set ns = namespace(last=messages|length - 1, found=false, names=[]) %}{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if not ns.found and message.role == 'user' and message.content is string %}{%- set ns.found = true %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- set content = message.content if message.content is string else '' %}{%- if message.role == 'assistant' %}{%- set thought = '' %}{%- if '</think>' in content %}{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}{{- '[a:' ~ loop.index0 ~ ':' ~ ns.last ~ '|' ~ thought ~ '|' ~ content ~ ']' }}{%- else %}{{- '[' + message.role[0] | upper + ':' + content + ']' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '[a:' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
    "macros_types": "{%- macro show(value, depth=0) -%}{%- if value is mapping -%}{{ '{' }}{%- for key, item in value.items() -%}{{ key }}={{ show(item, depth + 1) }}{%- if not loop.last -%}, {% endif -%}{%- endfor -%}{{ '}' }}{%- elif value is string -%}'{{ value }}'{%- elif value is iterable -%}[{%- for item in value -%}{{ show(item, depth + 1) }}{{ ';' if not loop.last }}{%- endfor -%}]{%- else -%}{{ value }}{%- endif -%}{%- endmacro -%}{% for m in messages %}{{ m.role }}: {{ show(m.tool_calls) if m.tool_calls is defined and m.tool_calls is not none else show(m.content) }}\n{% endfor %}{{ tools is none }} {{ tools is defined }} {{ documents is defined }} {{ nothing is defined }} {{ none }} {{ true and not false }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ -7 % 3 }}",
    "dumps": "{{ messages | tojson }}\n{{ tools | tojson(indent=2) }}\n{{ tools | tojson(separators=(',', ':')) }}\n{{ tools | tojson(sort_keys=true, indent=4) }}\n{{ messages[0].content | tojson(ensure_ascii=true) }}\n{{ [] | tojson(indent=4) }}{{ {} | tojson }}",
    "prints": "{{ messages[0] }}\n{% for t in tools or [] %}{{ t.function.parameters }}\n{{ t['function']['name'] | string ~ '!' }}\n{% endfor %}{{ [1, 2.5, 'x', none, true] }} {{ 'a' ~ 1 ~ 2.0 }} {{ \"it's\" | capitalize }} {{ ['b', 'a'] | sort | join(', ') }} {{ messages | map(attribute='role') | list | join(' ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'abc'[::-1] }} {{ 'abc'[-1] }} {{ 'a,b'.split(',') | length }} {{ 'x'.startswith('x') }} {{ ' y '.strip() }} {{ 'Title case'.title() }} {{ 'abc' | replace('b', 'B') }} {{ range(3) | list }} {{ {'k': 'v'}.get('z', 'none') }} {{ messages | last | attr('role') if false else (messages | last)['role'] }} {{ 'a' in 'abc' }} {{ 'role' in messages[0] }} {{ '%s-%d' | format('x', 3) }} {{ messages[0].content | length }} {{ (messages[0].content or 'd') | default('d', true) }}",
    "flow": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index > 3 %}{% break %}{% endif %}{% generation %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.last }} {{ loop.previtem.role if loop.previtem is defined else '-' }} {{ loop.nextitem is defined }}\n{% endgeneration %}{% else %}empty{% endfor %}{# a comment #}{% raw %}{{ raw }}{% endraw %}\n  {%- if true -%}  trimmed  {%- endif %}\n    {% set x %}block {{ messages | length }}{% endset %}\n{{ x }}{% filter upper %}shout{% endfilter %}\n",
    "dates": "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%Y') | length %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}Today: {{ date_string }} {{ strftime_now('%d %b %Y') | length }}{% for m in messages %}\n{{ m.content }}{% endfor %}",
    "strict": "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m.role + ' here') }}{% endif %}{{ m.content }}{% endfor %}",
}


def tokenizer_goldens() -> dict:
    families = {}
    for name, make in FAMILIES.items():
        file = HERE / "tokenizers" / f"{name}.json"
        make().save(str(file), pretty=False)
        t = PreTrainedTokenizerFast(tokenizer_file=str(file), clean_up_tokenization_spaces=False)
        rows = []
        for text in TEXTS:
            ids, special = t.encode(text, add_special_tokens=False), t.encode(text, add_special_tokens=True)
            rows.append([ids, special, t.decode(ids, skip_special_tokens=True), t.decode(special, skip_special_tokens=False)])
        families[name] = rows
        print(name, t.vocab_size, file.stat().st_size)
    return {"about": "Written by make_tokenizer_goldens.py. Per tokenizer and text: ids, ids with the tokenizer's own special tokens, and their decodings, without special tokens and with them.", "texts": TEXTS, "tokenizers": families}


def template_goldens() -> dict:
    t = PreTrainedTokenizerFast(tokenizer_file=str(HERE / "tokenizers" / "bytes-threes.json"), bos_token="<|begin|>", eos_token="<|end|>")
    cases = []
    for name, template in TEMPLATES.items():
        for messages, tools, variables in [(PLAIN, None, {}), (TALK, None, {"enable_thinking": False}), (TALK, TOOLS, {}), (CALLS, TOOLS, {})]:
            case = {"template": name, "messages": messages, "tools": tools, "variables": variables}
            try:
                case["text"] = t.apply_chat_template(messages, tools=tools, chat_template=template, add_generation_prompt=True, tokenize=False, **variables)
            except TemplateError as error:
                case["error"] = str(error)
            cases.append(case)
    return {"about": "Written by make_tokenizer_goldens.py: conversations as transformers renders them.", "templates": TEMPLATES, "cases": cases}


def main() -> None:
    (HERE / "tokenizers").mkdir(parents=True, exist_ok=True)
    for file, made in (("tokenizers", tokenizer_goldens()), ("templates", template_goldens())):
        (HERE / f"{file}.json").write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
