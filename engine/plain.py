"""One way of writing: what a model wrote, as plain text that can be compared. The standard library alone.

Thoughts, tags and Markdown go; LaTeX is unwrapped; numbers, fractions, dates and times get one form; Chinese words that
frame an answer become English; set phrases become the one word for them that engine/rule.py knows ("by no means": not).
"""

import re
import unicodedata


def table(cue: str, *rows: tuple) -> tuple:
    """Rows of (pattern, replacement) for a text in which the pattern `cue` is found: one fast look before slow ones."""
    return re.compile(cue), [(re.compile(pattern, re.MULTILINE), new) for pattern, new in rows]


def rewritten(text: str, rules: tuple) -> str:
    """The text after every row of a table, one after the other."""
    cue, rows = rules
    if cue.search(text):
        for pattern, new in rows:
            text = pattern.sub(new, text)
    return text


# ------------------------------------------------------------------------------------------------ markup
THOUGHT = re.compile(r"</(?:think\w*|reason\w*|thought)>")
CHARACTERS = str.maketrans(dict(zip("−–’‘“”⁄。，、；…≈→⋅✓", "--''\"\"/.,,;.=,· ", strict=True)) | {"—": " : "})
SUPERSCRIPT = table(r"[^\x00-\x7f]", (r"([¼½¾⅐-⅞])", r" \1"), (r"([⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+)", r"^\1"))
TAGS = table("<", (r"<answer>", " answer: "), (r"</?\w+>|<\|.{0,40}?\|>", " "))
SYMBOLS = dict(times="×", cdot="×", approx="=", pi="π", pm="±", left="", right="", to=",", angle="")
LATEX = table(
    r"[\\$]",
    (r"\\(?:begin|end)\{\w+\*?\}|(?<!\\)&", " "),
    (r"\\\\\s*(?==)", " "),
    (r"\\\\", "\n"),
    (r"(?<=\d)\\[dtc]?frac", r" \\frac"),  # a mixed number
    (r"\$\$|\\[()\[\],;:! ]|\\q?quad\b|~", " "),
    (r"\\%", "%"),
    (r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b", "°"),
    (r"\\\$", "usd "),
    (r"\$([^$\n]{0,300}[^$\s])\$(?!\d)", r" \1 "),  # $x = 5$, but not $5 and $6
    (r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2 "),
)
BRACES = table(  # applied again and again: from the innermost braces outwards
    r"\{",
    (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2 "),
    (r"\\sqrt\s*\{([^{}]*)\}", r"√\1"),
    (r"\^\{([^{}]*)\}", r"^\1"),
    (r"\\f?box(?:ed)?\s*\{([^{}]*)\}", r" answer: \1 "),
    (r"\\(?:text\w*|math\w+|mbox|operatorname|bm|emph)\s*\{([^{}]*)\}", r" \1 "),
)
COMMANDS = table(r"\\", (r"\\([a-zA-Z]+)", lambda m: SYMBOLS.get(m[1], f" {m[1]} ")))
SHORT = table(
    r"['*#`_\"{}•>-]",
    (r"[-=]>", ","),
    (r"^ *(?:#+|[*•-]) |\*\*|__|`|[\"{}]", ""),
    (r"\b(it|that|there|he|she|what|here|who|this)'s\b", r"\1 is"),
    (r"\bcan(?:'t|not)\b", "can not"),
    (r"n't\b", " not"),
    (r"\b(i|he|she|it|we|they|you)'(?:d|ll|m|re|ve)\b", r"\1"),
    (r"'", ""),
)

# ------------------------------------------------------------------------------------------------ Chinese
CHINESE = table(
    r"[^\x00-\x7f]",
    (r"(\d{4})\s*年\s*(\d{1,2})\s*月\s*(\d{1,2})\s*日?", r" \1-\2-\3 "),
    (r"^(?:是的?|对|有)(?=[,.]|$)", " yes "),
    (r"^(?:否|不是?|没有|不对)(?=[,.]|$)", " no "),
    (r"[他她它]们?|[这那]", " it "),
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
    (r"一共|总共|共|正在|[个只辆条位张块的了吗呢]", " "),
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
SMALL |= {"dozen": 12}
SMALL |= zip("thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(), range(13, 20), strict=True)
TENS = dict(zip("twenty thirty forty fifty sixty seventy eighty ninety".split(), range(20, 100, 10), strict=True))
LARGE = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "bn": 1e9, "mn": 1e6}
LETTERS = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9}
PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
MONTHS = "january february march april may june july august september october november december".split()
NUM = r"(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,3}\b)?"


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


def fraction(m: re.Match) -> str:
    """2 and a half -> 2.5, 3 quarters -> 0.75; "the third" stays."""
    whole, count, part = m.groups()
    if not count and part != "half":
        return m[0]
    return shown(float(whole or 0) + (1 if count in ("a", None) else float(count)) / PARTS[part])


def ratio(m: re.Match) -> str:
    """1 1/2 -> 1.5."""
    whole, top, bottom = (float(g or 0) for g in m.groups())
    return shown(whole + top / bottom) if bottom else m[0]


def date(m: re.Match) -> str:
    """5 March 2021 -> date2021x3x5; what is not said is left out. 3/5/2021 is read as in the United States."""
    year, month, day = (m.groupdict().get(k) or "" for k in "ymd")
    month = int(month) if month.isdigit() else [x[:3] for x in MONTHS].index(month[:3]) + 1
    month, day = (int(day), month) if month > 12 and day else (month, day)
    return f"date{year}x{month}x{int(day) if day else ''}"


def clock(m: re.Match) -> str:
    """Quarter to ten -> time9x45, 2:30 p.m. -> time2x30p."""
    said = m.groupdict()
    hour, minutes = int(said["h"]), int({"half": 30, "quarter": 15}.get(said.get("part")) or said.get("min") or 0)
    hour, minutes = ((hour - 1) or 12, 60 - minutes) if said.get("to") == "to" else (hour, minutes)
    return f"time{hour}x{minutes:02d}{said.get('half') or ''}"


_BELOW_100 = rf"(?:(?:{'|'.join(TENS)})(?:[ -](?:{'|'.join(SMALL)}))?|{'|'.join(SMALL)})"
_BELOW_1000 = rf"(?:(?:{_BELOW_100}|a) hundred(?: (?:and )?{_BELOW_100})?|{_BELOW_100})"
_THOUSANDS = rf"(?: (?:thousand|million|billion)(?:,? (?:and )?{_BELOW_1000})?)*"
_PARTS = "|".join(PARTS)
_MANY = (rf"(?<![\d./])({NUM}) ?({'|'.join(LARGE)})\b", lambda m: shown(float(m[1]) * LARGE[m[2]]))
NUMBER_WORDS = table(
    rf"\b(?:{'|'.join([*SMALL, *TENS, *LARGE])})",
    (r"\b(the|this|that|which|each|no|another) one\b|\bone (?=of\b)", r"\1 ones "),  # no number
    (rf"\b(?:{_BELOW_1000}|a(?= (?:thousand|[mb]illion))){_THOUSANDS}\b(?!-(?!{_PARTS}))", spelled),
    _MANY,
)
LARGE_NUMBERS = table(
    r"\d[,^ ]",
    (r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)", lambda m: m[0].replace(",", "")),
    (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])", lambda m: m[0].replace(" ", "")),
    (rf"(?<![\d.])({NUM}) ?[×x*·] ?10 ?(?:\^|\*\*) ?\(?([+-]?\d{{1,3}})\)?", r"\1e\2"),
    (r"(?<![\w.])10\^\(?([+-]?\d{1,3})\)?", r"1e\1"),
)
_MONTH = "(?P<m>" + "|".join(f"{m}|{m[:3]}\\.?" for m in MONTHS) + r"|sept\.?)"
_DAY = r"(?P<d>\d{1,2})(?:st|nd|rd|th)?(?![\w.:]*\d)"
_YEAR = r"(?:,? (?P<y>\d{4})\b)?"
DATES = table(
    rf"\d[-/.]|\b(?:{'|'.join(m[:3] for m in MONTHS)})",
    (r"\b(?P<y>\d{4})[-/](?P<m>\d{1,2})[-/](?P<d>\d{1,2})\b", date),
    (r"\b(?P<m>\d{1,2})/(?P<d>\d{1,2})/(?P<y>\d{4})\b", date),
    (r"\b(?P<d>\d{1,2})\.(?P<m>\d{1,2})\.(?P<y>\d{4})\b", date),
    (rf"\b(?:the )?{_DAY}(?: of)? {_MONTH}\b{_YEAR}", date),
    (rf"\b{_MONTH} (?:the )?{_DAY}{_YEAR}", date),
    (rf"\b{_MONTH},? (?:of )?(?P<y>\d{{4}})\b", date),
)
TIMES = table(
    r"\d(?::| ?[ap]\.?m| ?o.?clock)|(?:to|past) \d",
    (r"\b(?P<h>\d{1,2}):(?P<min>[0-5]\d)(?::\d\d)?(?: ?(?P<half>[ap])\.?m\b\.?)?", clock),
    (r"\b(?P<h>\d{1,2}) ?(?:o ?clock|(?P<half>[ap])\.?m\b\.?)", clock),
    (r"\b(?:a )?(?P<part>half|quarter) (?P<to>past|to) (?P<h>\d{1,2})\b", clock),
    (r"\b(?P<min>5|10|20|25)(?: minutes)? (?P<to>past|to) (?P<h>\d{1,2})\b(?! \w)", clock),
)
FRACTIONS = table(
    rf"/|minus|negative|{_PARTS}",
    (rf"\b(?:(\d+) and )?(?:(a|\d+)[ -])?({_PARTS})s?\b", fraction),
    (r"(?<![\d./])(?:(\d+) )?(\d+) ?/ ?(\d+)(?![\d/])", ratio),
    (r"\b(?:minus|negative) (?=[\d.])", "-"),
    _MANY,
)
DIGITS = table(r"\d", (rf"(?<![a-z\d.]){NUM}", lambda m: shown(float(m[0]))))

# ------------------------------------------------------------------------------------------------ set phrases
PHRASES = table(
    r"\b(?:doubt|question|only|also|well|along|but|other|except|apart|than|instead|opposed|compared|contrast|used|"
    r"longer|first|initially|means?|meant|far|thought|rul(?:e|ed|ing)|not|know|idea|way|hard|difficult|impossible|"
    r"unable|say|second|closer|scratch|fact|re-?(?:count|check|consider)|total|sum|all|conclusion|"
    r"summary|is (?:the|my|your))",
    (r"\b(?:no|without (?:a |any )?|beyond (?:a |any )?)(?: ?doubt| question)\b|\bnot only\b", " "),
    (r"\bbut also\b|\bas well as\b|\balong with\b", " and "),
    (r"\b(?:none|nothing|nobody|no one) (?:but|other than)\b", " only "),
    (r"\b(?:any|every|no|all)\w* (?:but|except|other than)\b|\bapart from\b", " except "),
    (
        r"\b(?:rather|other) than\b|\binstead of\b|\bas opposed to\b|\b(?:compared|in contrast) (?:to|with)\b",
        " unlike ",
    ),
    (r"\bused to\b|\bno longer\b|\b(?:at|my) first\b|\binitially\b|\bby no means\b|\bfar from\b", " never "),
    (r"\b(?:i|we) (?:had |have )?(?:first )?thought\b|\brul(?:e|ed|ing) out\b", " never "),
    (r"\bfirst (?:counted|guessed|got|saw|said|took|read)\b", " never "),
    (r"\bnot (?:\w+ )?(?:sure|certain|clear)\b|\b(?:do|does|did) not know\b|\bno (?:idea|way to)\b", " unsure "),
    (r"\bcan not (?:be )?(?:tell|say|know|determine|see|read|answer|identify|count|decide)\w*", " unsure "),
    (r"\b(?:hard|difficult|impossible) to\b|\bunable to\b|\b(?:some|others) say\b", " unsure "),
    (r"\b(?:i|we) meant?\b|\bon second thought\b|\b(?:looking|on) closer\b|\bscratch that\b|\bin fact\b", " actually "),
    (r"\b(?:let me |i )?re-?(?:count|check|consider)\w*", " actually "),
    (r"\b(?:a |the |in )?(?:grand )?\b(?:total|sum) (?:of|is|=)|\bin (?:total|all)\b", " altogether "),
    (r"\bin (?:conclusion|summary)\b", " so "),
    (r"\bis (?:the|my|your) (?:\w+ )?(?:answer|choice)\b", " is right "),
    (r"\bif not\b", " or "),
)


def plain(text: str) -> str:
    r"""One way of writing, in lower case. An unfinished thought leaves nothing.

    Example: r"<think>4?</think>It's **$1\frac{1}{2}$ million**" -> "it is 1500000"; "答案是Ｂ" -> "answer: b".
    """
    text = re.sub(r"[★✗«»‹›]", "", THOUGHT.split(text)[-1].partition("<think")[0])
    if not text.isascii():
        text = unicodedata.normalize("NFKD", rewritten(text, SUPERSCRIPT))
        text = "".join(c for c in text if not unicodedata.combining(c))
    for rules in (TAGS, LATEX, *[BRACES] * 4, COMMANDS):
        text = rewritten(text, rules)
    text = re.sub(r"(?<![\d.])(\d+(?:\.\d+)?)([KkMB])\b", lambda m: shown(float(m[1]) * LETTERS[m[2]]), text)
    text = re.sub(r"[^\S\n]+", " ", text.lower().translate(CHARACTERS))
    for rules in (CHINESE, SHORT, LARGE_NUMBERS, NUMBER_WORDS, DATES, TIMES, FRACTIONS, DIGITS, PHRASES):
        text = rewritten(text, rules)
    return re.sub(r"[^\S\n]+", " ", text).strip()
