"""The rule (engine/rule.py): what counts as an answer, what takes it back, and what cannot be told."""

import json
from pathlib import Path

import pytest

from data import Question
from engine.marks import options, refer
from engine.plain import plain
from engine.rule import clauses, rule_judge
from judge import rule_judge as public_name

CASES = Path(__file__).resolve().parent.parent / "results" / "rule_cases.jsonl"
ABCD = "Which instrument is shown?\nA. violin\nB. flute\nC. trumpet\nD. drum"


def verdict(question: str, answer: str, response: str) -> int:
    return rule_judge(Question("q", (), question, answer), response)


TABLE = {  # (question, answer): (right, wrong)
    ("What is 3/4 + 1/2?", "5/4"): (
        [r"$\frac{5}{4}$", r"\boxed{\frac{5}{4}}", r"$1\frac{1}{4}$", r"The answer is \(\dfrac{5}{4}\)."],
        [r"$\frac{4}{5}$", r"First \boxed{\frac{5}{4}}, then \boxed{\frac{3}{4}}.", r"$-\frac{5}{4}$"],
    ),
    ("What is the slope?", "-1/2"): ([r"\boxed{-\frac{1}{2}}", "-0.5", r"$m = -\dfrac12$"], ["0.5", r"\boxed{-2}"]),
    ("How much is the shirt?", "$15"): (["$15", r"\$15.00", "15 dollars"], ["$150", "€15", "-$15"]),
    ("How many apples are on the table?", "7"): (
        ["7, because 4 are red and 3 green.", "There are 7 apples, since 5 lie in front.", "7 (3 red, 4 green)",
         "3 + 4 = 7",
         "Seven. Four are in the basket and three are on the cloth.",
         "Answer: 7. Explanation: 4 in the basket and 3 out."],
        ["6, because 7 would include the pear.", "The answer is 4, as the other 3 of the 7 fruits are pears.", "7 of 9",
         "Answer: 8. Explanation: the basket holds 7 and one fell out.", "3 of the 7 are red", "7 - x", "7 7"],
    ),
    ("What value does the chart show for 2014?", "23.4"): (
        ["The bar shows 23.4 in 2014.", "In 2014, the value was 23.4, the highest of all.", "21 in 2013, 23.4 in 2014"],
        ["In 2014 the value rose from 23.4 to 25.1.", "The bar for 2014 is lower than 23.4.", "23.4 in 2013",
         "The value was 23.4 in 2013 and 25.1 in 2014."],
    ),
    ("What animal is on the sofa?", "cat"): (
        ["A cat is sleeping on the sofa.", "There is a grey cat lying on the sofa.",
         "The animal on the sofa is a cat."],
        ["A dog that chases a cat is on the sofa.", "The dog is on the sofa and the cat is under the table.",
         "a cat toy"],
    ),
    (ABCD, "B"): (
        ["Option B is correct, not A.", "**Answer: B**", "Not A, C or D. It is B.", "(B) flute", "It's the flute.", "b",
         "A is a string instrument, C and D do not fit. So it must be B."],
        ["Option A is correct, not B.", "Either B or C", "B and C", "(B) violin", "B is not correct, C is.",
         "A flute. C",
         "I would rule out B.", "The answer is B. No wait, C.", "Not A, B or D. It is C."],
    ),
    ("Which letter is shown? (A) x (B) y", "A"): (["A", "A.", "(A)"], ["A nice picture", "B", "not A"]),
    ("How long is the pencil?", "15 cm"): (
        ["15 centimetres", "150 mm", "0.15 m", "It is 15cm long."], ["15 mm", "15 inches", "almost 15 cm", "-15 cm"],
    ),
    ("How fast?", "60 km/h"): (["60 kilometers per hour", "60 kph"], ["60 mph", "60 m/s"]),
    ("What is the area?", "20 m^2"): (["20 m²", "20 square meters"], ["20 m", "20 cm²", "20 cubic meters"]),
    ("What percentage?", "35%"): (["35", "35 per cent", "0.35", r"$35\%$"], ["0.35%", "3.5%", "more than 35%"]),
    ("How many people live there?", "1.2 million"): (["1,200,000", "1.2M", "1 200 000"], ["1.2", "1.2 billion"]),
    ("How many seats?", "248"): (["two hundred and forty-eight"], ["two hundred", "forty-eight"]),
    ("What is the wavelength?", "5 × 10⁻⁷ m"): (["5e-7 m", r"$5\times10^{-7}$ m", "5 x 10^-7"], ["5 × 10⁷ m", "5"]),
    ("How many cups?", "1 1/2"): (["1½ cups", "one and a half cups", "3/2"], ["11/2", "1 or 2", "half a cup"]),
    ("When does it start?", "March 5, 2021"): (
        ["5 March 2021", "2021-03-05", "on the 5th of March 2021",
         "It starts on 5 March 2021 and ends on 7 March 2021."],
        ["March 2021", "May 3, 2021", "It starts on 4 March 2021 and ends on 5 March 2021."],
    ),
    ("What time is it?", "9:45"): (["quarter to ten", "09:45", "9:45 am"], ["9:54", "945", "quarter past nine"]),
    ("When does the train leave?", "2:30 PM"): (["14:30", "half past two"], ["2:30 AM", "14:03"]),
    ("图中是什么动物？\nA. 猫\nB. 狗\nC. 马", "B"): (
        ["答案是B", "Ｂ", "故选：B", "（B）", "狗", "应该选择B"],
        ["不是B", "选C，不选B。", "A或B", "排除B，选A。", "猫"],
    ),
    ("图中有几个苹果？", "3"): (["三个", "图中有3个苹果。"], ["三十个", "不是3个", "大于3"]),
    ("Which fruits?", "apple, banana, pear"): (
        ["apple, banana and pear", "1. apple\n2. banana\n3. pear", "There is a pear, an apple and a banana."],
        ["apple, banana", "apple, banana, or pear", "an apple and a banana but no pear", "apple, banana, pear, plum"],
    ),
    ("Where is P?", "(3, 4)"): (["(3,4)", "P = (3, 4)"], ["(4, 3)", "(3, -4)"]),
    ("How many dogs?", "2"): (
        ["<think>3 or 2</think><answer>2</answer>"], ["<think>2</think>3", "<think>There are 2. The answer is 2."],
    ),
    ("Is the light on?", "yes"): (
        ["Yes, the light is on.", "The light is on."], ["Yes? No, it is off.", "yes or no", "The light is not on.",
         "no"],
    ),
    ("Is there a hat?", "no"): (["No, there is no hat.", "There is no hat."], ["Yes, no doubt.", "I have no idea."]),
    ("What color is the door?", "red"): (
        ["It is red, not blue.", "The door is not blue but red.", "It isn't blue, it's red.", "I think it is red."],
        ["It doesn't look red.", "It cannot be red.", "anything but red", "blue rather than red",
         "I doubt that it is red.",
         "neither red nor blue", "by no means red", "It used to be red.", "No red here.", "maybe red", "red/blue",
         "reddish",
         "It is not, in my opinion, red.", "red? blue?", "some say red", "I doubt that the answer is red."],
    ),
    ("How many wheels?", "4"): (
        ["Not 3 but 4.", "4, not 3", "At first I counted 3, but it is 4."],
        ["Not 4 but 3.", "maybe 4, maybe 5", "4 or 5", "4-5", "at least 4", "4, possibly 5", "6? 4?",
         "4. Wait, no, 5."],
    ),
    ("Who painted it?", "Vincent van Gogh"): (
        ["It was painted by Vincent van Gogh.", "Vincent Van Gogh in 1889"],
        ["a pupil of Vincent van Gogh", "Paul Gauguin, a friend of Vincent van Gogh", "Theo van Gogh", "Vincent"],
    ),
    ("what color is right of red square?", "green"): (
        ["i see red square top left then top middle green circle. the answer is green"],
        ["i see red square top left then top middle green circle. the answer is red", "green circle. the answer is"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("question, answer", TABLE, ids=lambda x: x[:30].replace("\n", " "))
def test_each_kind_of_answer_is_told_from_its_counterfeits(question, answer):
    right, wrong = TABLE[question, answer]
    assert [r for r in right if not verdict(question, answer, r)] == []
    assert [r for r in wrong if verdict(question, answer, r)] == []


def test_the_rule_agrees_with_its_development_cases():
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    found = [(row["label"], verdict(row["question"], row["answer"], row["response"])) for row in rows]
    negatives = sum(label == 0 for label, _ in found)
    assert len(found) > 1000 and 0.4 < negatives / len(found) < 0.6
    assert sum(a == b for a, b in found) / len(found) > 0.993 and found.count((0, 1)) / negatives < 0.005
    assert public_name is rule_judge


KINDS = [  # one right answer of each kind, without a reason or an aside
    ("How many apples are there?", "7", "There are 7 apples."),
    ("How many apples are there?", "7", "The answer is 7."),
    ("How long is it?", "5 cm", "It is 50 mm."),
    ("What color is the car?", "red", "The car is red."),
    (ABCD, "B", "The answer is (B) flute."),
    (ABCD, "B", "It is a flute."),
    ("Is the light on?", "yes", "Yes."),
    ("What time is it?", "9:45", "It is 9:45."),
    ("When does it start?", "5 March 2021", "It starts on March 5, 2021."),
    ("Who painted it?", "Anna Smith", "It was painted by Anna Smith."),
    ("Which fruits?", "apple, pear", "An apple and a pear."),
    ("汽车是什么颜色？", "红色", "汽车是红色的。"),
]


@pytest.mark.parametrize("question, answer, response", KINDS)
def test_what_changes_nothing_and_what_changes_all(question, answer, response):
    bare = response.rstrip(".。")
    same = [response, bare, f"  {response}\n\n", response.upper(), response.lower(), f"**{response}**"]
    same += [f"{bare}, because that can be seen.", f"<think>It is not {answer}, or is it?</think>{response}"]
    assert [r for r in same if verdict(question, answer, r) != 1] == []
    other = [f"not {bare}", f"I doubt that {response}", f"{bare} or something else", f"{bare} or 9", f"maybe {bare}"]
    other += [f"<think>{response}", f"{response} No, I was wrong.", f"It is unclear whether {bare}"]
    assert [r for r in other if verdict(question, answer, r) != 0] == []


PIECES = ["1", "a ", "1,", "(", "\\frac{", "$a", "x=5 ", "three ", "not ", "是", "三", "- ", "<|", "may ", "12:30 "]


@pytest.mark.parametrize("piece", PIECES)
def test_a_response_of_100_000_characters_is_judged(piece):  # a quadratic pattern would take minutes
    for question, answer, _ in KINDS[:1] + KINDS[4:5]:
        assert verdict(question, answer, piece * (100_000 // len(piece))) == 0


def test_plain_writes_one_way():
    assert plain(r"<think>4?</think>It's **$1\frac{1}{2}$ million**") == "it is 1500000"
    assert plain("3.0, three quarters, 1,200 and ½ of 2²") == "3, 0.75, 1200 and 0.5 of 2^2"
    assert plain("5 March 2021; 3:30 p.m.") == "date2021x3x5; time3x30p"
    assert plain("$5 and $6") == "$5 and $6"  # no formula


def test_clauses_are_cut_where_a_claim_ends():
    found = [(" ".join(c.words), c.sentence, c.inside) for c in clauses("it is not ✗ but ★ (or ✗), because of ✗. so ★")]
    assert found == [
        ("it is not ✗", 0, False), ("but ★", 0, False), ("or ✗", 0, True), ("because of ✗", 0, False), ("so ★",
        1, False),
    ]  # fmt: skip


def test_the_reference_says_its_kind():
    kinds = {("?", "3 cm"): "number", ("?", "yes"): "yes or no", ("?", "red, blue"): "list", ("?", "Anna"): "words"}
    kinds |= {
        ("?", "5 May 2020"): "time",
        ("(A) red (B) blue", "blue"): "option",
        ("How many cups?", "3 cups"): "number",
    }
    assert {k: refer(*k).kind for k in kinds} == kinds
    assert options("Which? (A) red, (B) dark blue or (C) 3.0") == {"a": "red", "b": "dark blue", "c": "3"}
