"""The rule: is the answer that a response settles on the reference answer? The standard library alone.

    1 plain     one way of writing (engine/plain.py)
    2 mark      what says the reference becomes ★; what says something else of the same kind (another option, another
                number, another colour) becomes ✗
    3 settle    clause by clause: a reason or an aside says nothing, a negation denies its clause, a doubt leaves the
                answer open, "but", "actually" and "so" start anew. The verdict is 1 if ★ alone is left

Example: the reference is 4. "It is not 3 but 4" is "it is not ✗ | but ★": 1. "4 or 5" is "★ or ✗", open: 0.
Where a person would hesitate the rule says 0: a wrong 1 harms training more than a wrong 0 does.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from data import Question
from engine.marks import Reference, members, phrase, refer, stem
from engine.plain import plain
from engine.words import (
    ADJECTIVES,
    BEHIND,
    CONCLUDES,
    CONTRASTS,
    FRAME,
    NAKED,
    NOT,
    OPEN,
    OPENERS,
    REASONS,
    RELATIVES,
    RETRACTS,
    SIGNALS,
    SUBJECTS,
    TURNS,
    UNLIKE,
    VERBS,
)  # fmt: skip

FINAL = re.compile(  # what follows the last of these is the answer
    r"\bans(?:wer)?\b(?: (?:to|for) [^.:\n]{1,80}?)??(?: (?:is|was|be|(?:should|would|must) be)\b| ?[:=]| - )+"
    r"|\bfinal\b(?: answer)?(?: is\b| ?:)?|\b(?:correct|right|best) (?:option|choice|letter)(?: is\b| ?:)"
    r"|\b(?:my|the) (?:choice|pick)(?: is\b| ?:)|\b(?:i|we) (?:would )?(?:choose|pick|select|go with)\b"
)
THING = re.compile(r"\b(?:is|are|was|were) (?:an?|the)\b")
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
        known = first in SUBJECTS or first.endswith("ing") or stem(first) in ref.asked or not first[1:].isalpha()
        astray = (subject and unknown(after, ref)) or (ref.counts and unknown(after[:1], ref))
        return told or (known and not astray)
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
