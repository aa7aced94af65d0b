"""Marks: what says the reference becomes ★ in a plain text, what says something else of its kind becomes ✗.

The kind follows from the reference and its question: an option, yes or no, a date or time, a number with or without a
unit, a list, or words. For words ✗ stands for the few that exclude them (another colour); most rivals stay unknown.

Example: for 4, "not 3 but 4" is "not ✗ but ★"; for B of "(A) red (B) blue", "blue, not A" is "★, not ✗".
"""

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from engine.plain import NUM, plain
from engine.words import ASKED, FILLER, NOT, OPENERS, RIVALS, UNITS

# ------------------------------------------------------------------------------------------------ patterns
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
LABEL = re.compile(r"\b(?:step|figure|fig\.?|question|item|row|column|panel|page|chapter|option|no\.)$")
YEAR = re.compile(r"\b(?:in|for|of|from|year|by|since|until|during|to|and)$|,$")
BOUND = re.compile(  # before a number that is no answer: "at least 5", "2x = 5"
    r"\b(?:at least|at most|up to|over|under|above|below|nearly|almost|exceed\w*|half)$"
    r"|(?:\^\d+|\d[a-z]) ?=$|[-+*×·/√^±<>]$"
)
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
ORDERED = re.compile(r"\b(order|sort|rank|sequence|steps?|from|first)\b", re.IGNORECASE)  # the question asks for one


# ------------------------------------------------------------------------------------------------ the reference
class Reference(NamedTuple):
    """What a response is compared with. `mark` puts ★ and ✗ into a plain text; `asked`: the stems of the question."""

    kind: str
    mark: Callable[[str], str]
    asked: frozenset
    whole: str
    ordered: bool  # is it a list in a given order?
    counts: bool  # does the question ask how many?


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
    kinds = {u[0] for u in (unit, other_unit) if u}
    comparable = kinds == {"%"} or (unit and other_unit and len(kinds) == 1)  # 35% is 0.35
    if comparable and close(number * (unit or (0, 1))[1], other * (other_unit or (0, 1))[1]):
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
    words = re.findall(r"[^\W_]+(?:-[^\W_]+)*", text)
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
    return Reference(kind, mark, asked, whole, bool(ORDERED.search(question)) or whole[:1] in "([", "how many" in text)
