"""One way of writing: what a model wrote, as plain text that can be compared. The standard library alone.

Thoughts, tags and Markdown go; LaTeX is unwrapped; numbers, fractions, dates and times get one form; Chinese words that
frame an answer become English; so do set phrases ("by no means"), which engine/rule.py then knows by one word.
"""

import re
import unicodedata


def table(*rows: tuple) -> list[tuple]:
    """Rows of (pattern, replacement), compiled."""
    return [(re.compile(pattern, re.MULTILINE), new) for pattern, new in rows]


def rewritten(text: str, rows: list[tuple]) -> str:
    """The text after every row's replacement, one after the other."""
    for pattern, new in rows:
        text = pattern.sub(new, text)
    return text


# ------------------------------------------------------------------------------------------------ LaTeX and markup
SYMBOLS = {"times": "×", "cdot": "×", "approx": "=", "pi": "π", "pm": "±", "left": "", "right": "", "to": ",", "angle": ""}
LATEX = table(
    (r"\$\$|\\[()\[\],;:! ]|\\q?quad\b|~", " "),
    (r"\\%", "%"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°"),
    (r"\\\$", "usd "),
    (r"\$([^$\n]{0,300}[^$\s])\$(?!\d)", r" \1 "),  # $x = 5$, but not $5 and $6
    (r"\\[dtc]?frac\s*(\d)\s*(\d)", r" \1/\2 "),
)
BRACES = table(  # done again and again, from the innermost braces outwards
    (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" \1/\2 "),
    (r"\\sqrt\s*\{([^{}]*)\}", r"√\1"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\\f?boxe?d?\s*\{([^{}]*)\}", r" answer: \1 "),
    (r"\\(?:text\w*|math\w+|mbox|operatorname|bm|emph)\s*\{([^{}]*)\}", r" \1 "),
)
COMMAND = re.compile(r"\\([a-zA-Z]+)")
THOUGHT = re.compile(r"</(?:think\w*|reason\w*|thought)>")
MARKUP = table((r"<answer>", " answer: "), (r"</?\w+>|<\|.{0,40}?\|>", " "))
SUPERSCRIPT = table((r"([¼½¾⅐-⅞])", r" \1"), (r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", r"^\1"))
CHARACTERS = str.maketrans(dict(zip("−–’‘“”⁄。，、；…≈→⋅✓", "--''\"\"/.,,;.=,· ", strict=True)) | {"—": " : "})
SHORT = table(  # also Markdown
    (r"^ *(?:#+|[*•-]) |\*\*|__|`|[\"{}]", ""),
    (r"\b(it|that|there|he|she|what|here|who|this)'s\b", r"\1 is"),
    (r"\bcan(?:'t|not)\b", "can not"),
    (r"n't\b", " not"),
    (r"\b(i|he|she|it|we|they|you)'(?:d|ll|m|re|ve)\b", r"\1"),
    (r"'", ""),
)

# ------------------------------------------------------------------------------------------------ Chinese
CHINESE = table(
    (r"(\d{4})\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*日?", r" \1-\2-\3 "),
    (r"不确定|不知道|不清楚|无法|看不清", " unsure "),
    (r"不是|不对|不选|不可能是|不|并非", " not "),
    (r"没有|无", " no "),
    (r"排除|错误", " wrong "),
    (r"大于|超过|多于|小于|少于|低于|高于", " more than "),
    (r"或者?|还是", " or "),
    (r"可能|也许|大概", " maybe "),
    (r"因为|由于", " , because "),
    (r"但是?|而是|其实", " but "),
    (r"所以|因此|故", " , so "),
    (r"(?:正确)?答案(?:应该)?(?:是|为|选|:)?|(?:应该?)?选择?项?(?:是|为|:)?", " answer: "),
    (r"[和与]", " and "),
    (r"一共|总共|共|正在|[个只辆条位张块的了]", " "),
    (r"是|为", " is "),
    (r"有", " has "),
    (r"[零一二两三四五六七八九十百千]+", lambda m: hanzi_number(m[0])),
    (r"百分之(\d+)", r"\1%"),
    (r"([\u3040-\u30ff\u4e00-\u9fff])", r" \1 "),  # every other character is a word
)


def hanzi_number(text: str) -> str:
    """The digits of a Chinese numeral: 二十三 -> 23."""
    total, last = 0, None
    for c in text:
        size = {"十": 10, "百": 100, "千": 1000}.get(c)
        if size:
            total, last = total + (1 if last is None else last) * size, 0
        else:
            last = "零一二三四五六七八九".index(c.replace("两", "二"))
    return str(total + (last or 0))


# ------------------------------------------------------------------------------------------------ numbers
SMALL = dict(zip("zero one two three four five six seven eight nine ten eleven twelve".split(), range(13), strict=True))
SMALL |= zip("thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(), range(13, 20), strict=True)
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
LARGE = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "bn": 1e9, "mn": 1e6}
PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
MONTHS = "january february march april may june july august september october november december".split()
NUM = r"(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,3}\b)?"
_LARGE, _PARTS = "|".join(LARGE), "|".join(PARTS)
_BELOW_100 = rf"(?:(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(SMALL)}))?|{'|'.join(SMALL)})"
_BELOW_1000 = rf"(?:(?:{_BELOW_100}|a) hundred(?: (?:and )?{_BELOW_100})?|{_BELOW_100})"
_MONTH = "(?P<m>" + "|".join(f"{m}|{m[:3]}\\.?" for m in MONTHS) + r"|sept\.?)"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?(?![\w.:]*\d)"
_YEAR = r"(?:,? (?P<y>\d{4})\b)?"


def shown(number: float) -> str:
    """A number in one form: 3.0 -> 3."""
    return f"{number:.15g}"


def spelled(m: re.Match) -> str:
    """The digits of a number in words: "two hundred and forty-eight" -> 248."""
    total = group = 0
    for word in re.findall(r"[a-z]+", m[0]):
        if word == "hundred":
            group = max(group, 1) * 100
        elif word in LARGE:
            total, group = total + max(group, 1) * LARGE[word], 0
        else:
            group += SMALL.get(word) or TENS.get(word, 0)
    return shown(total + group)


def part(m: re.Match) -> str:
    """One and a half -> 1.5, 3 quarters -> 0.75; "the third" stays."""
    whole, count, name = m.groups()
    if not count and name != "half":
        return m[0]
    return shown(float(whole or 0) + (1 if count in ("a", None) else float(count)) / PARTS[name])


def ratio(m: re.Match) -> str:
    """1 1/2 -> 1.5."""
    whole, top, bottom = (float(g or 0) for g in m.groups())
    return shown(whole + top / bottom) if bottom else m[0]


def date(m: re.Match) -> str:
    """5 March 2021 -> date2021x3x5; what is not said is left out. 3/5/2021 is read as in the United States."""
    year, month, day = (m.groupdict().get(k) or "" for k in "ymd")
    month = int(month) if month.isdigit() else [x[:3] for x in MONTHS].index(month[:3]) + 1
    day = int(day or 0)
    month, day = (day, month) if month > 12 else (month, day)
    return f"date{year}x{month}x{day or ''}"


def clock(m: re.Match) -> str:
    """Quarter to ten -> time9x45, 2:30 p.m. -> time2x30p."""
    said = m.groupdict()
    hour, minutes = int(said["h"]), int({"half": 30, "quarter": 15}.get(said.get("part")) or said.get("min") or 0)
    hour, minutes = ((hour - 1) or 12, 60 - minutes) if said.get("to") == "to" else (hour, minutes)
    return f"time{hour}x{minutes:02d}{said.get('half') or ''}"


NUMBERS = table(
    (r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)", lambda m: m[0].replace(",", "")),
    (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])", lambda m: m[0].replace(" ", "")),
    (r"\b(the|this|that|which|each|no|another) one\b|\bone (?=of\b)", r"\1 ones "),  # no number
    (
        rf"\b(?:{_BELOW_1000}|a(?= (?:thousand|[mb]illion)))(?: (?:thousand|million|billion)(?:,? (?:and )?{_BELOW_1000})?)*"
        rf"\b(?!-(?!{_PARTS}))",
        spelled,
    ),
    (rf"({NUM}) ?({_LARGE})\b", lambda m: shown(float(m[1]) * LARGE[m[2]])),
    (rf"({NUM}) ?[×x*·] ?10 ?(?:\^|\*\*) ?\(?([+-]?\d{{1,3}})\)?", r"\1e\2"),
    (r"(?<![\w.])10\^\(?([+-]?\d{1,3})\)?", r"1e\1"),
    (r"\b(?P<y>\d{4})[-/](?P<m>\d{1,2})[-/](?P<d>\d{1,2})\b", date),
    (r"\b(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})\b", date),
    (r"\b(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})\b", date),
    (rf"\b(?:the )?{_DAY}(?: of)? {_MONTH}\b{_YEAR}", date),
    (rf"\b{_MONTH} (?:the )?{_DAY}{_YEAR}", date),
    (rf"\b{_MONTH},? (?P<y>\d{{4}})\b", date),
    (r"\b(?P<h>\d{1,2}):(?P<min>[0-5]\d)(?::\d\d)?(?: ?(?P<half>[ap])\.?m\b\.?)?", clock),
    (r"\b(?P<h>\d{1,2}) ?(?:o ?clock|(?P<half>[ap])\.?m\b\.?)", clock),
    (r"\b(?:a )?(?P<part>half|quarter) (?P<to>past|to) (?P<h>\d{1,2})\b", clock),
    (r"\b(?P<min>5|10|20|25)(?: minutes)? (?P<to>past|to) (?P<h>\d{1,2})\b(?! \w)", clock),
    (rf"\b(?:(\d+) and )?(?:(a|\d+)[ -])?({_PARTS})s?\b", part),
    (r"(?<![\d./])(?:(\d+) )?(\d+) ?/ ?(\d+)(?![\d/])", ratio),
    (r"\b(?:minus|negative) (?=[\d.])", "-"),
    (rf"(?<![a-z\d.]){NUM}", lambda m: shown(float(m[0]))),
)
HAS_NUMBER = re.compile(rf"\d|\b(?:{'|'.join([*SMALL, *TENS, *LARGE, *PARTS])})")
THOUSANDS = {"k": " thousand", "m": " million", "b": " billion"}

# ------------------------------------------------------------------------------------------------ set phrases
PHRASES = table(
    (r"\b(?:no|without (?:a |any )?|beyond (?:a |any )?)(?: ?doubt| question)\b|\bnot only\b", " "),
    (r"\bbut also\b|\bas well as\b|\balong with\b", " and "),
    (r"\b(?:none|nothing|nobody|no one) (?:but|other than)\b", " only "),
    (r"\b(?:any|every|no|all)\w* (?:but|except|other than)\b|\bapart from\b", " except "),
    (r"\b(rather|other) than\b|\binstead of\b|\bas opposed to\b|\bcompared (?:to|with)\b|\bin contrast to\b", " unlike "),
    (r"\bused to\b|\bno longer\b|\b(?:at|my) first\b|\binitially\b|\b(?:i|we) (?:had |have )?(?:first )?thought\b", " never "),
    (r"\bfirst (?:counted|guessed|got|saw|said|took|read)\b|\bby no means\b|\brul(?:e|ed|ing) out\b|\bfar from\b", " never "),
    (r"\bnot (?:\w+ )?(?:sure|certain|clear)\b|\b(?:do|does|did) not know\b|\bno (?:idea|way to)\b", " unsure "),
    (r"\bcan not (?:be )?(?:tell|say|know|determine|see|read|answer|identify|count|decide)\w*", " unsure "),
    (r"\b(?:hard|difficult|impossible) to\b|\bunable to\b|\b(?:some|others) say\b", " unsure "),
    (r"\b(?:i|we) meant?\b|\bon second thought\b|\b(?:looking|on) closer\b|\bscratch that\b|\bin fact\b", " actually "),
    (r"\b(?:let me |i )?re-?(?:count|check|consider)\w*", " actually "),
    (r"\b(?:a |the |in )?(?:grand )?\b(?:total|sum) (?:of|is|=)|\bin (?:total|all|conclusion|summary)\b", " altogether "),
    (r"\bis (?:the|my|your) (?:\w+ )?(?:answer|choice)\b", " is right "),
    (r"\bif not\b", " or "),
    (r"[^\S\n]+", " "),
)


def plain(text: str) -> str:
    r"""One way of writing, in lower case. An unfinished thought leaves nothing.

    Example: r"<think>4?</think>It's **$1\frac{1}{2}$ million**" -> "it is 1500000"; "答案是Ｂ" -> "answer: b".
    """
    text = re.sub(r"[★✗«»‹›]", "", THOUGHT.split(text)[-1].partition("<think")[0])
    if not text.isascii():
        text = unicodedata.normalize("NFKD", rewritten(text, SUPERSCRIPT))
        text = "".join(c for c in text if not unicodedata.combining(c))
    text = rewritten(text, MARKUP) if "<" in text else text
    if "\\" in text or "$" in text:
        text = rewritten(text.replace(r"\\", "\n"), LATEX)
        for _ in range(4):
            text = rewritten(text, BRACES) if "{" in text else text
        text = COMMAND.sub(lambda m: SYMBOLS.get(m[1], f" {m[1]} "), text)
    text = re.sub(r"(?<=\d)([KkMB])\b", lambda m: THOUSANDS[m[1].lower()], text)
    text = text.lower().translate(CHARACTERS)
    text = rewritten(text if text.isascii() else rewritten(text, CHINESE), SHORT)
    text = rewritten(text, NUMBERS) if HAS_NUMBER.search(text) else text
    return rewritten(text, PHRASES).strip()
