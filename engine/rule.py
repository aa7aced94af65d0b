"""The rule: is the answer that a response settles on the reference answer? The standard library alone.

    1 plain     one way of writing (engine/plain.py)
    2 mark      what says the reference becomes ★; what says something else of the same kind (another option, another
                number, another colour) becomes ✗
    3 settle    clause by clause: a reason or an aside says nothing, a negation denies its clause, a doubt leaves the
                answer open, "but", "actually" and "so" start anew. The verdict is 1 if ★ alone is left

Example: the reference is 4. "It is not 3 but 4" is "it is not ✗ | but ★": 1. "4 or 5" is "★ or ✗", open: 0.
Where a person would hesitate the rule says 0: a wrong 1 harms training more than a wrong 0 does.
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from data import Question
from engine.plain import MONTHS, NUM, plain

# ------------------------------------------------------------------------------------------------ words
SUBJECTS = set("it there i he she they we you this that these those".split())
RETRACTS = set("nope wait sorry correction oops actually".split())
CONTRASTS = set("but however instead yet".split())
CONCLUDES = set("so therefore thus hence altogether".split())
TURNS = RETRACTS | CONTRASTS | CONCLUDES
REASONS = set("because since as while whereas although though if when due reason meaning".split())
UNLIKE = set("unlike than except without before after besides excluding".split())
RELATIVES = set("which who whose that".split())
OPENERS = REASONS | CONTRASTS | CONCLUDES | UNLIKE | RELATIVES | {"and"}  # a clause begins with each of them
NOT = set(
    """not no never neither nor none nobody nothing hardly barely scarcely doubt deny denies exclude excluded eliminate
    eliminated wrong incorrect false untrue mistaken unlikely impossible almost nearly opposite""".split()
)
OPEN = set(
    """or either maybe perhaps possibly possible may might could unsure uncertain unclear ambiguous undecided whether
    depends depending alternatively otherwise sometimes /""".split()
)
FILLER = set(  # words that stand around an answer and say nothing themselves
    """a an the its here is are was were be been being am his her their them our my your can see seen sees show shows
    shown showing depict depicts depicted display displays indicates states reveals image picture photo photograph chart
    graph figure diagram bar say says said read reads reading by in on at from to for of with during named called titled
    labeled labelled look looks appear appears seem seems like think believe guess would choose pick select chosen have
    has had contain contains option choice answer correct right final finally exactly only just about approximately
    around roughly probably likely most fairly quite very pretty sure certain clearly definitely simply then and also now
    what where according based do does did must should given all any both value number amount overall result equals equal
    gives get find found count counted conclude step visible each per winner best fit fits order""".split()
).union(SUBJECTS, RELATIVES)
DETAILS = set(  # words that may stand there too, and that tell what is asked when the question has them
    """written painted taken made directed created drawn built measures weighs costs lasts length width height weight size
    area volume distance time price cost age temperature speed name measure population line pie product difference
    average mean median perimeter slope solution""".split()
)
FRAME = FILLER | DETAILS | TURNS | OPENERS
ADJECTIVES = set(
    "big small large little young old tall long single red green blue yellow black white grey brown".split()
)
SIGNALS = NOT | OPEN | TURNS | REASONS
NAKED = set("★ ✗ a an the and or nor option together".split())
VERBS = set("is are was were has had have can".split())
BEHIND = VERBS | set(  # what may follow an answer in its clause
    """in on at with from by near behind under over above below beside between along across around against into onto
    through inside during next for to here there 1 ones color colour""".split()
)
RIVALS = [  # words that exclude one another
    "red green blue yellow black white grey gray brown orange pink purple silver gold beige".split(),
    "circle square triangle rectangle pentagon hexagon oval star cube sphere".split(),
    "left right top bottom middle center centre".split(),
    "north south east west".split(),
    "true false".split(),
    "monday tuesday wednesday thursday friday saturday sunday".split(),
    MONTHS,
]
FINAL = re.compile(  # what follows the last of these is the answer
    r"\bans(?:wer)?\b(?: (?:to|for) [^.:\n]{1,80}?)??(?: (?:is|was|be|(?:should|would|must) be)\b| ?[:=]| - )+"
    r"|\bfinal\b(?: answer)?(?: is\b| ?:)?|\b(?:correct|right|best) (?:option|choice|letter)(?: is\b| ?:)"
    r"|\b(?:my|the) (?:choice|pick)(?: is\b| ?:)|\b(?:i|we) (?:would )?(?:choose|pick|select|go with)\b"
)
ORDERED = re.compile(r"\b(order|sort|rank|sequence|steps?|from|first)\b", re.IGNORECASE)  # the question asks for one

# ------------------------------------------------------------------------------------------------ units and letters
UNITS = {}  # every way to write one: (dimension, size)
for _line in """m m,meter,metre 1|m mm,millimeter,millimetre 1e-3|m cm,centimeter,centimetre 1e-2
    |m km,kilometer,kilometre 1e3|ft ft,foot,feet 1|ft in,inch,inche .08333333333333333|ft mi,mile 5280|ft yd,yard 3
    |g g,gram,gramme 1|g mg,milligram 1e-3|g kg,kilogram,kilo 1e3|g tonne 1e6|lb lb,pound 1|lb oz,ounce .0625
    |s s,sec,second 1|s ms,millisecond 1e-3|s min,minute 60|s h,hr,hour 3600|day day 1|day week 7|month month 1
    |year year,yr 1|l l,liter,litre 1|l ml,milliliter,millilitre 1e-3|c c,celsius 1|f f,fahrenheit 1|kelvin kelvin 1
    |w w,watt 1|w kw,kilowatt 1e3|w mw,megawatt 1e6|v v,volt 1|j j,joule 1|j kj,kilojoule 1e3|n n,newton 1
    |hz hz,hertz 1|hz khz 1e3|hz mhz 1e6|byte kb 1e3|byte mb 1e6|byte gb 1e9|amp amp,ampere 1|% %,percent,per cent 1e-2
    |$ $,us$,usd,dollar 1|$ ¢,cent 1e-2|€ €,eur,euro 1|£ £,gbp 1|¥ ¥,yen,yuan 1|m/s kph,kmh .2777777777777778
    |ft/s mph 1.4666666666666666""".split("|"):
    _dimension, _names, _size = re.match(r"(\S+) (.+) (\S+)", _line.strip()).groups()
    UNITS |= {name + s: (_dimension, float(_size)) for name in _names.split(",") for s in ("", "s")}
ASKED = {"%": "percentage share proportion rate probability chance fraction".split(), "year": "old age".split()}
ASKED |= {c: "cost costs price paid pay revenue money salary income spend spent worth total".split() for c in "$€£¥"}
_UNIT = "(?:" + "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True)) + r")(?![^\W\d])"
UNIT = (
    rf"(?P<power>square |sq\.? |cubic )?(?P<unit>(?!in\b *\w){_UNIT})(?: ?\^ ?(?P<hat>[23])\b|(?P<digit>[23])\b)?"
    rf"(?: ?(?:/|per\b) ?(?P<per>{_UNIT})(?:\^?(?P<perdigit>2)\b)?)?"
)
ONE_UNIT = re.compile(rf"(?<![^\W\d]){UNIT}")
QUANTITY = re.compile(
    rf"(?P<sign>(?<![\w)])[+-](?=\S))?(?P<money>us\$|[$€£¥]|\b(?:usd|eur|gbp)\b)? ?(?<![^\W_]|\.)(?P<number>{NUM})"
    rf"(?!\d)"
    rf"(?:[ -]?(?:degrees?\b|°)?\s?{UNIT}| ?(?:degrees?\b|°))?"
)
THING = re.compile(r"\b(?:is|are|was|were) (?:an?|the)\b")
LABEL = re.compile(r"\b(?:step|figure|fig\.?|question|item|row|column|panel|page|chapter|option|no\.)$")
YEAR = re.compile(r"\b(?:in|for|of|from|year|by|since|until|during|to|and)$|,$")
BOUND = re.compile(r"\b(?:at least|at most|up to|over|under|above|below|nearly|almost|exceed\w*|half)$|[-+*×·/√^±<>]$")
OPERATOR = re.compile(r" ?[+×·^√±]| ?\*|/|[^\W\d_]| - [b-hj-z]\b")
OPTION = re.compile(
    r"\(([A-Ha-h])\)|(?<!\w)([A-H])(?:[.):、](?=\s|[^\x00-\x7f]|$)|\)|(?=\W*$))"
)  # (B)  B.  B:  B at the end
LETTER = (  # a letter as an option; "a" alone is an article unless something follows that follows an option
    r"[(\[]([LETTERS])[)\]]|(?<![\w'-])(?:(?!a\b)([LETTERS])|(?:(?<=option )|(?<=choice )|(?<=answer )|(?=a ?(?:$|"
    r"[.,;:!?)\n/‹(]|(?:is|was|and|or|nor|because|since|as|not|but|would|looks|fits|seems|can|must|unlike|are)\b)))(a))"
    r"(?![\w'-])[):]?"
)
YES_NO = {
    "yes": r"\b(?:yes|yeah|yep|yup)\b",
    "no": r"\b(?:no|nope)\b(?= *(?:$|[.,;:!\n]|(?:there is|it|he|she|they|the|this|that|i|we|because|since)\b))",
}


# ------------------------------------------------------------------------------------------------ 2 mark
class Reference(NamedTuple):
    """What a response is compared with. `mark` puts ★ and ✗ into a plain text; `asked`: the stems of the question."""

    kind: str
    mark: Callable[[str], str]
    asked: frozenset
    whole: str
    ordered: bool


def stem(word: str) -> str:
    """Good enough to see that "painter" speaks of "painted"."""
    return re.sub(r"(?:ing|ed|ers?|es|e|s)$", "", word) if len(word) > 3 else word


def phrase(text: str) -> str:
    """A pattern for the words of a plain text, whatever stands between them."""
    words = re.findall(r"[\w°%$€£√^/+=-]+", text)
    words = words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words
    return r"(?<![\w-])(?:the |an? )?" + r"\W{1,3}(?:the |an? )?".join(map(re.escape, words)) + r"(?![\w-])"


def unit_of(m: re.Match) -> tuple[str, float] | None:
    """(dimension, size) of what QUANTITY or ONE_UNIT found: km/h -> ("m/s", 0.278); None without a unit."""
    found = m.groupdict()
    name = found["unit"] or found.get("money")
    if not name:
        return None
    dimension, size = UNITS[name]
    if found["power"] or found["hat"] or found["digit"]:
        power = 3 if found["power"] == "cubic " or "3" in (found["hat"], found["digit"]) else 2
        dimension, size = f"{dimension}^{power}", size**power
    if found["per"]:
        below, part = UNITS[found["per"]]
        dimension, size = f"{dimension}/{below}{found['perdigit'] or ''}", size / part
    return dimension, size


def quantities(text: str) -> list[tuple]:
    """(start, end, number, unit) of every number in a plain text: "5 cm" -> [(0, 4, 5.0, ("m", 0.01))]."""
    found = QUANTITY.finditer(text)
    return [(m.start(), m.end(), float(m["number"]) * (-1 if m["sign"] == "-" else 1), unit_of(m)) for m in found]


def equal(said: tuple, wanted: tuple, question: str) -> bool:
    """Are two (number, unit) the same? A unit may be missing; one that the wanted one lacks must be asked for."""

    def close(a: float, b: float) -> bool:
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b))

    (number, unit), (other, other_unit) = said, wanted
    alike = unit and other_unit and unit[0] == other_unit[0]
    percent = "%" in ((unit or " ")[0], (other_unit or " ")[0])
    if (alike or percent) and close(number * (unit or (0, 1))[1], other * (other_unit or (0, 1))[1]):
        return True
    if not unit or other_unit:
        return not unit and close(number, other)
    sizes = [size for dimension, size in asked_units(question) if dimension == unit[0]]
    return any(close(number * unit[1], other * size) for size in sizes)


@functools.lru_cache(maxsize=4096)
def asked_units(question: str) -> tuple:
    """The units that a plain question asks for: "how many metres" -> (("m", 1.0),)."""
    found = [unit_of(m) for m in ONE_UNIT.finditer(question) if len(m[0]) > 1 or not m[0].isalpha()]
    words = set(re.findall(r"[a-z]+", question))
    found += [unit for unit in set(UNITS.values()) if words & set(ASKED.get(unit[0], ()))]
    return tuple(found)


def with_numbers(text: str, new: Callable) -> str:
    """The text with new(start, end, (number, unit), text) in the place of every number for which that is not None."""
    out, done = [], 0
    for start, end, *said in quantities(text):
        word = new(start, end, tuple(said), text)
        if word is not None:
            out += [text[done:start], word]
            done = end
    return "".join(out) + text[done:]


def number_marker(wanted: tuple, question: str) -> Callable[[str], str]:
    """★ for the (number, unit), ✗ for any other number; numbers of the question, years and labels stay as they are."""
    known = {number for _, _, number, _ in quantities(question)}
    dated = any(1500 <= n <= 2100 for n in known)
    known = set() if wanted[0] in known else known

    def kept(number, unit, before, after) -> bool:
        year = not unit and 1500 <= number <= 2100 and number == int(number) and not 1500 <= wanted[0] <= 2100
        label = number in known or after[:2] in ("st", "nd", "rd", "th") or LABEL.search(before)
        return bool(label or (year and (dated or YEAR.search(before))))

    def sign(start: int, end: int, said: tuple, text: str) -> str | None:
        before, after = text[max(0, start - 20) : start].rstrip(), text[end : end + 5]
        if kept(*said, before, after):
            return None
        exact = not BOUND.search(before) and not OPERATOR.match(after)
        return " ★ " if exact and equal(said, wanted, question) else " ✗ "

    def mark(text: str) -> str:
        if wanted[0] == 0:  # "there are no cups"
            text = re.sub(r"\b(there (?:is|are)|see|has|have) no\b|\bnone\b", r"\1 0", text)
        if wanted[1] and wanted[1][0] == "£":
            text = text.replace("pound", "gbp")
        return with_numbers(text, sign)

    return mark


def option_marker(letter: str, texts: dict[str, str], question: str) -> Callable[[str], str]:
    """★ for the option's letter, its text, or both; ✗ for another option and for a letter with a wrong text."""
    numbers = {k: quantities(t)[0] for k, t in texts.items() if QUANTITY.fullmatch(t)}
    named = sorted((item for item in texts.items() if item[1]), key=lambda item: -len(item[1]))
    pattern = re.compile("|".join(f"(?P<{k}>{phrase(t)})" for k, t in named) or r"(?!)")
    letters = re.compile(LETTER.replace("LETTERS", "".join(sorted({letter, *texts})) if len(texts) > 1 else "a-h"))

    def of_number(said: tuple) -> str | None:
        return next((f"‹{k}›" for k, q in numbers.items() if equal(said, q[2:], question)), None)

    def mark(text: str) -> str:
        if len(numbers) == len(texts) > 1:
            text = with_numbers(text, lambda start, end, said, text: of_number(said))
        else:
            text = pattern.sub(lambda m: f"‹{m.lastgroup}›", text)
        text = letters.sub(lambda m: f"«{m[1] or m[2] or m[3]}»" + (m[0][-1] if m[0][-1] in "):]" else ""), text)
        text = re.sub(r"«(\w)»[\s.:)\]-]*‹\1›|‹(\w)›[\s(]*«\2»", r"«\1\2»", text)
        text = re.sub(r"«\w»[\s.:)\]-]*‹\w›|‹\w›\s*\(\s*«\w»", "✗", text)
        if texts.get(letter):  # "(B) green" where B is red
            text = re.sub(r"«\w»[\]):] *([^\W\d_]+)", lambda m: m[0] if m[1] in FILLER | OPENERS | NOT else "✗", text)
        return re.sub(r"[«‹](\w)[»›][)\[\]:]?", lambda m: " ★ " if m[1] == letter else " ✗ ", text)

    return mark


def word_marker(pattern: str, rivals: list[str]) -> Callable[[str], str]:
    """★ for the pattern, ✗ for each of the rival patterns."""
    right, wrong = re.compile(pattern), re.compile(rf"\b(?:{'|'.join(rivals)})\b" if rivals else r"(?!)")
    return lambda text: wrong.sub(" ✗ ", right.sub(" ★ ", text))


def time_marker(wanted: str, question: str) -> Callable[[str], str]:
    """★ for the date or time of day (as engine/plain.py writes them), ✗ for others.

    What the reference says of a date must be said or stand in the question. 14:30 is 2:30 pm; where one of the two
    times does not say the half of the day, 2:30 is enough.
    """

    def parts(text: str) -> list[str]:
        if text.startswith("date"):
            return text[4:].split("x")
        hour, minutes = text[4:].rstrip("ap").split("x")
        half = text[-1] if text[-1] in "ap" else "p" if int(hour) > 12 else ""
        return [str(int(hour) % 12), minutes, half]

    def right(text: str) -> bool:
        pairs = zip(parts(wanted), parts(text), strict=True)
        loose = question if wanted.startswith("date") else "ap"
        return all(not w or w == s or (not s and w in loose) for w, s in pairs)

    pattern = re.compile(rf"\b{wanted[:4]}\d*x\w+\b")
    return lambda text: pattern.sub(lambda m: " ★ " if right(m[0]) else " ✗ ", text)


def options(text: str) -> dict[str, str]:
    """The options that a text offers: "Which? (A) red (B) blue" -> {"a": "red", "b": "blue"}."""
    marks = list(OPTION.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    found = {}
    for m, end in zip(marks, ends, strict=False):
        behind = text[m.end() : end].strip(" \n*_.:").partition("\n")[0]
        found[(m[1] or m[2]).lower()] = plain(re.sub(r"[,;]?\s*(?:\b(?:or|and))?$", "", behind)).rstrip(".,;")
    return found


def members(text: str) -> list[str]:
    """The members of a list: "red; dark blue and green" -> [red, dark blue, green]."""
    parts = re.split(r"[;\n|&,\[\]()]|\band\b|/(?!\d)", text)
    return [p for p in (re.sub(r"^(?:the|an?) (?=\w)", "", part.strip(" .")) for part in parts) if p]


@functools.lru_cache(maxsize=4096)
def refer(question: str, answer: str) -> Reference:
    """The reference of one question, made ready once."""
    offered, named = options(unicodedata.normalize("NFKC", question)), options(answer) if OPTION.match(answer) else {}
    offered = offered if len(offered) > 1 else {}
    text, whole = plain(question), plain(answer).strip(" .")
    words = re.findall(r"[^\W_]+", text)
    asked = frozenset(stem(w) for w in words if w not in FILLER)
    value = whole.rpartition("=")[2].strip()
    found = quantities(value)
    around = value[: found[0][0]] + value[found[0][1] :] if len(found) == 1 else "?"
    letter = next(iter(named), None) or next((k for k, t in offered.items() if t == whole), None)
    letter = letter or (whole if re.fullmatch("[a-h]", whole) else None)
    if letter:
        kind, mark = "option", option_marker(letter, offered or {k: t for k, t in named.items() if t}, text)
    elif whole in YES_NO:
        kind, mark = "yes or no", word_marker(YES_NO[whole], [YES_NO["no" if whole == "yes" else "yes"]])
    elif re.fullmatch(r"(?:date|time)\w+", whole):
        kind, mark = "time", time_marker(whole, text)
    elif not {stem(w) for w in re.findall(r"[^\W_]+|[?]", around)} - asked:
        kind, mark = "number", number_marker(found[0][2:], text)
    elif len(members(whole)) > 1:
        kind, mark = "list", str
    else:
        rivals = [w for group in RIVALS if whole in group for w in group if w != whole and w not in words]
        kind, mark = "words", word_marker(phrase(whole), rivals)
    return Reference(kind, mark, asked, whole, bool(ORDERED.search(question)) or whole[:1] in "([")


# ------------------------------------------------------------------------------------------------ 3 settle
TOKEN = re.compile(r"[★✗]|\d+(?:\.\d+)?\w*|[^\W\d_][\w-]*|[.,;:!?()\n=/+-]|[°%$€£√]")


class Clause(NamedTuple):
    """A few words and where they stand. `inside`: in brackets, behind other words of the sentence."""

    words: list[str]
    marks: list[str]
    sentence: int
    end: str
    inside: bool


@dataclass
class Sentence:
    """What is known of a sentence while its clauses are read."""

    number: int = -1
    begun: bool = False  # a clause came before
    denied: bool = False  # the clause before was denied, ...
    dangling: bool = False  # ... and the denied thing is still to come: "it is not, I think, ★"
    aside: bool = False  # from here on it only gives reasons
    echo: int = 0  # how many words of the question the clause before repeats


def clauses(text: str) -> list[Clause]:
    """The clauses of a marked text: cut at punctuation and before words like "but", "because", "and", "than"."""
    out, words, sentence, depth = [], [], 0, 0
    tokens = [*TOKEN.findall(text), "\n"]
    for token, after in zip(tokens, [*tokens[1:], "\n"], strict=True):
        cut = token in ".!?;\n,:()-" and not (token == "-" and words[-1:] and words[-1] in "★✗" and after in "★✗")
        opens = token in OPENERS and (token != "and" or len(words) > 2)
        opens = opens or (token in ("not", "no") and words[-1:] and words[-1] in "★✗")
        if token == "=":  # what stands before it is no answer
            words = [w for w in words if w in SIGNALS]
        elif words and (cut or opens) and not (token == "," and len(words) == 1 and words[0] in TURNS):
            inside = depth > 0 and bool(out) and out[-1].sentence == sentence
            out.append(Clause(words, [w for w in words if w in "★✗"], sentence, token, inside))
            words = []
        if cut:
            depth = max(0, depth + (token == "(") - (token == ")"))
            if token in ".!?;\n":
                sentence, depth = sentence + 1, 0
        elif token != "=":
            words.append(token)
    return out


def unknown(words: list[str], ref: Reference) -> list[str]:
    """The words that neither frame an answer nor stand in the question."""
    return [w for w in words if w not in FRAME and w not in "★✗" and stem(w) not in ref.asked]


def answers(words: list[str], ref: Reference, told: bool) -> bool:
    """Does ★ stand where an answer stands? "It is a ★ in", not "a pupil of ★", "the ★ leans", "Germany won ★"."""
    before, after = words[: words.index("★")], words[words.index("★") + 1 :]
    subject = not set(before) - OPENERS - {"a", "an", "the", "option"} and after[:1] and after[0] in VERBS
    echo = any(stem(w) in ref.asked for w in after)
    if ref.kind in ("option", "yes or no"):  # "B is the shortest" describes B
        return not (subject and unknown(after, ref))
    if ref.kind != "words":
        first = next((w for w in before if w in SUBJECTS or w not in FRAME), "it")
        return told or first in SUBJECTS or first.endswith("ing") or stem(first) in ref.asked or not first.isalpha()
    if before[1:] and before[-1] in ADJECTIVES and before[-2] in ("a", "an", "the"):
        before = before[:-1]
    if unknown(before, ref) or "★" in after or (after and after[0] in VERBS and not subject):
        return False
    if subject:  # "Paris is the capital"
        return echo or not unknown(after, ref)
    return not after or after[0] in BEHIND or after[0].endswith("ing") or (not told and stem(after[0]) in ref.asked)


def refuses(clause: Clause) -> bool:
    """Does it begin with a "no" that takes back what was said? Not so "no red here"."""
    return clause.words[0] == "no" and (clause.words[1:2] or ["it"])[0] in SUBJECTS | {"wait", "its"}


def withdraws(clause: Clause, ref: Reference) -> bool:
    """Does a clause start anew, so that what was said before no longer counts?"""
    head = clause.words[0]
    if not (head in TURNS or "actually" in clause.words or refuses(clause)):
        return False
    if clause.marks or refuses(clause) or head in RETRACTS or "actually" in clause.words[:-1]:
        return True
    return ref.kind == "words" and head in CONTRASTS and len(clause.words) > 1  # "but it is a cane": a rival unknown


def role_of(clause: Clause, now: Sentence, ref: Reference, listed: bool) -> str:
    """What a clause does: "claims", "denies", leaves "open", or is an "aside". `listed`: its sentence lists things."""
    head, words = clause.words[0], set(clause.words)
    relative = head in RELATIVES and not (head == "that" and not now.denied and words & (SUBJECTS - {"that"}))
    more = (listed and words <= NAKED) or (now.dangling and not words & (VERBS | SUBJECTS))
    if now.denied and (relative or more):  # "not A, B or C"
        return "denies"
    negated = bool(words & (NOT - {"no"})) or ("no" in words and not refuses(clause)) or head in UNLIKE
    doubts = words & OPEN - ({"or", "either", "/"} if negated else set())
    if not clause.marks and (now.aside or head in REASONS | CONCLUDES):
        doubts -= {"may", "might", "could"}
    if doubts or (clause.end == "?" and clause.marks):
        return "open"
    if clause.inside or now.aside or head in REASONS or elsewhen(words, ref):
        return "aside"
    return "denies" if negated else "claims"


def elsewhen(words: set, ref: Reference) -> bool:
    """Does a clause speak of other years than the question?"""
    said, asked = ({w for w in x if re.fullmatch(r"1[5-9]\d\d|20\d\d", w)} for x in (words, ref.asked))
    return bool(said and asked and not said & asked)


def claimed(clause: Clause, ref: Reference, told: bool) -> list[str]:
    """The marks that a clause claims; ✗ too for an answer in words that no mark is known for: "there is a vase"."""
    marks, text = clause.marks, " ".join(clause.words)
    if "★" in marks and not answers(clause.words, ref, told):
        marks = [w for w in marks if w != "★"]
    rival = ref.kind == "words" and not clause.marks and THING.search(text) and unknown(clause.words, ref)
    return [*marks, "✗"] if rival or ("★ ★" in text and ref.kind != "option") else marks


def settles(text: str, ref: Reference, told: bool) -> bool:
    """Is ★ what a marked text settles on? `told`: it stands behind a word like "answer:"."""
    parts, now = clauses(text), Sentence()
    listed = {c.sentence for c in parts if {"or", "nor", "and"} & set(c.words)}
    claims, opened, settled = [], False, None  # settled: the sentence that gave the answer
    for clause in parts:
        content = unknown(clause.words, ref)
        if clause.sentence != now.number:
            now = Sentence(clause.sentence)
        if withdraws(clause, ref):
            claims, opened, settled, now = [], False, None, Sentence(now.number, now.begun)
        elif settled is not None and settled < now.number:  # an explanation, unless it answers again or doubts
            again = clause.marks and not content
            if not again and not (OPEN & set(clause.words) and (clause.marks or ref.kind == "words")):
                continue
        elif settled == now.number and content and ref.kind == "number" and not OPEN & set(clause.words):
            continue  # "7 apples, 3 of them red"
        role = role_of(clause, now, ref, now.number in listed)
        opened |= role == "open"
        now.aside |= now.begun and role == "aside" and clause.words[0] in REASONS
        now.dangling = role == "denies" and not clause.marks and (now.dangling or set(content) <= NOT)
        now.denied, now.begun = role == "denies", True
        if role == "claims":
            carried = now.echo if clause.words[0] == "and" and not content else 0
            now.echo = carried + len({stem(w) for w in clause.words} & ref.asked)
            found = claimed(clause, ref, told)
            claims += [(mark, now.echo) for mark in found]
            if settled is None and (told or (clause.marks and not content)):
                settled = now.number
    if len({mark for mark, _ in claims}) > 1 and ref.kind not in ("option", "yes or no"):
        most = max(echo for _, echo in claims)  # the clauses that repeat most of the question speak of what it asks
        claims = [(mark, echo) for mark, echo in claims if echo == most > 0]
    return {mark for mark, _ in claims} == {"★"} and not opened


def same_list(text: str, ref: Reference) -> bool:
    """Does a plain text hold the members of the reference and nothing else?"""
    text = re.split(r"\b(?:because|since|as)\b", text)[0]
    text = re.sub(r"(?:^|(?<=[ :\n]))\d+[.)] (?=[^\W\d])", "\n", text)
    wanted, found = members(ref.whole), []

    def note(m: re.Match) -> str:
        found.append(re.sub(r"^(?:the|an?) ", "", m[0]))
        return " , "

    pattern = "|".join(phrase(w) for w in sorted(wanted, key=len, reverse=True))
    left = re.findall(r"[^\W_]+", re.sub(pattern, note, text))
    odd = {w for w in left if stem(w) not in ref.asked} & (OPEN | UNLIKE | CONTRASTS)
    return not unknown(left, ref) and not odd and (found == wanted if ref.ordered else sorted(found) == sorted(wanted))


def stance(text: str, ref: Reference) -> str | None:
    """What one plain sentence says to a question of yes or no, by repeating the question's words."""
    words = re.findall(r"[^\W_]+", text)
    if ref.asked - {stem(w) for w in words} or set(words) & (OPEN | TURNS) or re.search(r"[.!?\n;] *\w", text):
        return None
    return "no" if set(words) & NOT else "yes"


def rule_judge(question: Question, response: str) -> int:
    r"""1 if the response settles on the reference answer, else 0.

    What follows the last "answer is", "answer:", "final" or \boxed is the answer; without such words the clauses of the
    whole response count. A unit may be missing; one that the reference lacks must be asked for. A list may come in any
    order unless the question asks for one.

    Example: reference "3": "i see a b c. the answer is 3", "3, because ...", "not 2 but 3" -> 1; "3 or 4" -> 0;
    reference "B" to "(A) red (B) blue": "(B)", "It is blue, not red" -> 1, "(B) red" -> 0; "5 cm": "50 mm", "5" -> 1.
    """
    ref, text = refer(question.text, question.answer), plain(response)
    if text.strip(" .") == ref.whole:
        return 1
    told, tail = list(FINAL.finditer(text)), text
    if told:
        tail = text[told[-1].end() :]
        frame = re.split(r"[.!?;,:\n]", text[max(0, told[-1].start() - 80) : told[-1].start()])[-1]
        if set(frame.split()) & ((NOT | OPEN) - {"no"}):  # "I doubt that the answer is"
            return 0
    if ref.kind == "list":
        return int(same_list(tail, ref))
    marked = ref.mark(tail)
    if ref.kind == "yes or no" and not re.search("[★✗]", marked):
        return int(stance(text, ref) == ref.whole)
    return int(settles(marked, ref, bool(told)))
