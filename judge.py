"""The judge: does a response say the right thing? r_ans in {0, 1}.

    rule      compares the final answer with the reference answer (numbers as numbers, words without case and
    punctuation)

The judge sees question, reference answer and response text, never the picture and never who wrote the response.
"""

import re

from data import Question, UserError, seed_of

FINAL = re.compile(r"\banswer(?: is|:)|\bfinal\b(?: answer)?(?: is|:)?", re.IGNORECASE)


def normalise(text: str) -> list[str]:
    """Words in lower case without punctuation, numbers in one form: "Three: 3.0 cups, 1/2." -> [three 3 cups 1/2]."""
    words = []
    for word in re.findall(r"[+-]?\d[\d.,:/]*%?|[+-]?\.\d+%?|[^\W\d_]+", text.lower().replace("'", "")):
        word = word.rstrip(".,:/")
        if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", word):
            word = word.replace(",", "")
        words.append(f"{float(word):.15g}" if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", word) else word)
    return words or text.split()


def rule_judge(question: Question, response: str) -> int:
    """1 if the response's final answer is the reference answer.

    What follows the last "answer is", "answer:" or "final" is the final answer; without such words the response has to
    end with the reference answer. An empty response is wrong, and so is one that offers a choice ("red or green").

    Example: reference "3": "i see a b c. the answer is 3" -> 1, "3" -> 1, "3 or 4" -> 0, "the answer is 3 things" -> 0.
    """
    answer = normalise(question.answer)
    *before, tail = FINAL.split(response)
    said = normalise(tail)
    if not said or ("or" in said and "or" not in answer):
        return 0
    return int(said == answer if before else said[-len(answer) :] == answer)


JUDGES = {"rule": rule_judge}


class Judge:
    """verdicts(questions, responses) -> 0/1 each. Every response names its question; the pairs are made here, by id.

    For studies a training judge can be weak: `judged` is the share of questions that have an answer key (the rest score
    0 for every response), `wrong` the share of verdicts that are turned round. Both by a hash, so always the same ones.
    """

    def __init__(self, name: str = "rule", judged: float = 1.0, wrong: float = 0.0):
        if name not in JUDGES:
            raise UserError(f"--judge {name}: unknown; there are {', '.join(JUDGES)}")
        self.name, self.ask, self.judged, self.wrong = name, JUDGES[name], judged, wrong

    def verdicts(self, questions: list[Question], responses: list) -> list[int]:
        """One verdict per response, in their order; `questions` may come in any order and number."""
        of = {q.id: q for q in questions}
        return [self.verdict(of[r.question], r.text) for r in responses]

    def verdict(self, question: Question, text: str) -> int:
        """The verdict on one response, weakened where the judge is."""
        if seed_of("judged", question.id) / 2**64 >= self.judged:
            return 0
        turned = seed_of("wrong", question.id, text) / 2**64 < self.wrong
        return self.ask(question, text) ^ turned
