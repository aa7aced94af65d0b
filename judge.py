"""The judge: does a response say the right thing? r_ans in {0, 1}.

    rule      compares the final answer with the reference answer (numbers as numbers, words without case and
    punctuation)

The judge sees question, reference answer and response text, never the picture and never who wrote the response.
"""

import re

from data import Question, UserError

FINAL = re.compile(r"(?:\banswer(?: is|:)|\bfinal(?: answer)?(?: is|:)?)", re.IGNORECASE)


def normalise(text: str) -> list[str]:
    """Words in lower case without punctuation; numbers in one form: "It's 3.0 cups." -> ["its", "3", "cups"]."""
    words = []
    for word in re.sub(r"[^\w\s.%+-]", "", text.lower()).split():
        word = word.strip(".+-") if not re.fullmatch(r"[+-]?\d*\.?\d+%?", word) else word
        if re.fullmatch(r"[+-]?\d*\.?\d+", word):
            word = f"{float(word):g}"
        if word:
            words.append(word)
    return words


def rule_judge(question: Question, response: str) -> int:
    """1 if the response's final answer is the reference answer.

    What follows the last "answer is", "answer:" or "final" is the final answer; without such words the response has to
    end with the reference answer. An empty response is wrong.

    Example: reference "3": "i see a b c. the answer is 3" -> 1, "3" -> 1, "3 or 4" -> 0, "the answer is 3 things" -> 0.
    """
    answer = normalise(question.answer)
    *before, tail = FINAL.split(response)
    said = normalise(tail)
    return int(bool(said) and (said == answer if before else said[-len(answer) :] == answer))


JUDGES = {"rule": rule_judge}


class Judge:
    """verdicts(questions, responses) -> 0/1 each. Every response names its question; the pairs are made here, by id."""

    def __init__(self, name: str = "rule"):
        if name not in JUDGES:
            raise UserError(f"--judge {name}: unknown; there are {', '.join(JUDGES)}")
        self.name, self.ask = name, JUDGES[name]

    def verdicts(self, questions: list[Question], responses: list) -> list[int]:
        """One verdict per response, in their order; `questions` may come in any order and number."""
        of = {q.id: q for q in questions}
        return [self.ask(of[r.question], r.text) for r in responses]
