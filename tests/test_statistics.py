"""Intervals and p-values: false alarms and coverage in simulations, Student's t against scipy."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

import eval as ev
import rollout
from data import Question
from tools import benchmarks, compare


def clustered(rng, pictures: int, questions: int) -> tuple[np.ndarray, np.ndarray]:
    """(differences in points, pictures) of two equally good students whose answers about one picture go together."""
    lean = rng.normal(0, 1, (pictures, 1))
    d = np.sign(lean + rng.normal(0, 0.4, (pictures, questions))) * (rng.random((pictures, questions)) < 0.6)
    return 100 * d.ravel(), np.repeat(np.arange(pictures), questions)


# ------------------------------------------------------------------------------------------------ Student's t
def test_students_t_is_scipys_for_any_number_of_seeds():
    for df in (1, 2, 3, 4, 7, 10, 29, 30, 99, 1000, 20_000):
        assert abs(ev.student_t(df) - stats.t.ppf(0.975, df)) < 1e-9
        assert abs(ev.student_t(df, 0.4) - stats.t.ppf(0.8, df)) < 1e-9
        for t in (0.0, -0.3, 1.0, 2.2, 5.0):
            assert abs(ev.student_p(t, df) - 2 * stats.t.sf(abs(t), df)) < 1e-11
    values = [0.61, 0.64, 0.57, *np.linspace(0.5, 0.7, 20)]
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert abs(ev.over_seeds(values)["half"] - (high - low) / 2) < 1e-12


def test_a_comparison_of_seeds_is_scipys():
    a, b, c = [70.1, 71.4, 69.0], [72.0, 72.9, 71.5], [72.0, 74.0, 71.0, 75.5, 73.0]
    paired, welch, alone = (compare.between_seeds(x, y) for x, y in ((a, b), (a, c), ([70.0], c)))
    assert abs(paired["p"] - stats.ttest_rel(b, a).pvalue) < 1e-12 and paired["about"] == "3 pairs of seeds"
    assert abs(alone["p"] - stats.ttest_1samp(c, 70.0).pvalue) < 1e-12
    assert alone["about"] == "one run as it is and 5 seeds"
    theirs = stats.ttest_ind(c, a, equal_var=False)
    assert welch["p"] == ev.student_p(theirs.statistic, int(theirs.df)) >= theirs.pvalue  # fewer degrees of freedom
    assert abs(welch["interval"][1] - welch["difference"] - welch["half"]) < 1e-12


# ------------------------------------------------------------------------------------------------ false alarms
@pytest.mark.parametrize("sides", [(2, 2), (3, 3), (5, 5), (2, 3), (2, 6), (5, 3), (1, 4)])
@pytest.mark.parametrize("spread", [1.0, 3.0])  # of side B, in that of side A
def test_equally_good_methods_differ_in_at_most_7_percent_of_comparisons_of_seeds(sides, spread):
    rng, (n, m), reps = np.random.default_rng(1), sides, 2000
    start = rng.normal(0, 2, (reps, max(n, m))) * (n == m)  # pairs share their warm start
    a, b = start[:, :n] + rng.normal(0, n > 1, (reps, n)), start[:, :m] + rng.normal(0, spread, (reps, m))
    hits = [compare.between_seeds(x, y)["p"] < 0.05 for x, y in zip(a, b, strict=True)]
    assert 0.01 < np.mean(hits) < 0.07


def test_equally_good_students_differ_in_at_most_7_percent_of_comparisons_of_clustered_rows():
    rng, flips, exact = np.random.default_rng(2), [], []
    for _ in range(800):
        d, pictures = clustered(rng, 300, 3)
        flips.append(compare.sign_flips(np.bincount(pictures, d), draws=400) < 0.05)
        exact.append(compare.mcnemar(int((d > 0).sum()), int((d < 0).sum())) < 0.05)
    assert 0.03 < np.mean(flips) < 0.07 and np.mean(exact) > 0.1  # the exact test would take rows for independent


def test_only_single_right_or_wrong_rows_get_the_exact_test():
    d, pictures = clustered(np.random.default_rng(3), 60, 3)
    ones, won, lost = np.ones(len(d)), int((d > 0).sum()), int((d < 0).sum())

    def p_of(d, clusters, weights=ones):
        return compare.between_weights(d, clusters, weights, 0)[0]["p"]

    assert p_of(d, np.arange(len(d))) == compare.mcnemar(won, lost)
    assert p_of(d, pictures) == compare.sign_flips(np.bincount(pictures, d)) != compare.mcnemar(won, lost)
    assert p_of(d, np.arange(len(d)), np.r_[2, ones[1:]]) != compare.mcnemar(won, lost)
    graded = d * np.linspace(0.5, 1, len(d))
    assert p_of(graded, np.arange(len(d))) == compare.sign_flips(graded)


def test_what_is_visible_respects_clusters_and_seeds():
    """A true difference of that size is found in about 80 % of comparisons."""
    rng, found = np.random.default_rng(4), []
    visible = np.mean(
        [compare.between_weights(*clustered(rng, 300, 3), np.ones(900), 0, 2)[0]["visible"] for _ in "ab"]
    )
    for _ in range(400):
        d, pictures = clustered(rng, 300, 3)
        found.append(compare.sign_flips(np.bincount(pictures, d + visible), draws=400) < 0.05)
    assert 0.74 < np.mean(found) < 0.86
    same = compare.between_weights(np.zeros(900), pictures, np.ones(900), 0, 2)[0]["visible"]
    alone = compare.between_weights(np.zeros(900), np.arange(900), np.ones(900), 0, 2)[0]["visible"]
    assert abs(same / alone - 3**0.5) < 1e-9 and abs(alone - 280 * (0.15 / 900) ** 0.5) < 1e-9
    for n in (3, 5):
        b = rng.normal(0, 1, (2000, n))
        visible = np.sqrt(np.mean([compare.between_seeds([0] * n, x)["visible"] ** 2 for x in b[:300]]))
        assert 0.7 < np.mean([compare.between_seeds([0] * n, x + visible)["p"] < 0.05 for x in b]) < 0.9


# ------------------------------------------------------------------------------------------------ intervals
def test_the_mean_of_fourteen_lies_in_its_interval_in_92_to_98_percent():
    """Rows stand in the order of their difficulty, so one stream for all benchmarks would make all draws alike."""
    rng, inside = np.random.default_rng(5), []
    for _ in range(300):
        draws, english = [], rng.normal(0, 1, 80)
        for name in benchmarks.BENCHMARKS:
            lean = english if name.startswith("mmb") else rng.normal(0, 1, 80)
            d = np.sort(lean) + rng.normal(0, 0.2, 80)
            draws.append(ev.boot_means(d, draws=400, seed=benchmarks.bootstrap_seed(name)))
        low, high = ev.middle(np.mean(draws, 0))
        inside.append(low < 0 < high)
    assert len(draws) == 14 and 0.92 <= np.mean(inside) <= 0.98


def test_each_benchmark_has_its_own_bootstrap_and_the_two_languages_of_mmbench_share_one():
    seeds = {name: benchmarks.bootstrap_seed(name) for name in benchmarks.BENCHMARKS}
    assert len(set(seeds.values())) == 13 and seeds["mmb"] == seeds["mmb-cn"]
    values = np.arange(200.0)
    drawn = {name: ev.boot_means(values, seed=seed) for name, seed in seeds.items()}
    assert (drawn["mmb"] == drawn["mmb-cn"]).all() and abs(np.corrcoef(drawn["mmb"], drawn["ai2d"])[0, 1]) < 0.1
    assert (ev.boot_means(np.arange(3e4), draws=70) >= 0).all()  # more rows than fit at once


def test_intervals_cover_accuracy_over_pictures():
    rng, inside, naive = np.random.default_rng(6), [], []
    p = 1 - np.mean(np.linspace(0.1, 0.6, 10**5) ** 0.5)
    for _ in range(400):
        right = rng.random((100, 1)) ** 2 > rng.random((100, 3)) / 2 + 0.1
        values = right.ravel().astype(int).tolist()
        low, high = ev.middle(ev.boot_means(values, np.repeat(np.arange(100), 3), draws=500))
        inside.append(low < p < high)
        low, high = ev.wilson(sum(values), 300)
        naive.append(low < p < high)
    assert 0.92 <= np.mean(inside) <= 0.98 and np.mean(naive) < 0.9


def test_greedy_and_sampled_intervals_of_an_evaluation_respect_pictures(monkeypatch):
    monkeypatch.setattr(ev, "greedy_answers", lambda s, prompts, names, *_: [said(n) for n in names])
    monkeypatch.setattr(rollout, "rollout", lambda s, p, names, draws, *_: [[said(n)] * draws for n in names])
    student = SimpleNamespace(encoder=SimpleNamespace(encode_question=lambda q: None))
    right = lambda asked, responses: [int(r.question.split("-")[0]) % 3 == 0 for r in responses]  # noqa: E731

    def said(name):
        return rollout.Response(name, 0, "student", [5], "x", logps=[0.0])

    def measured(meta):
        questions = [Question(f"{k // 3}-{k % 3}", (), "?", "!", meta(k)) for k in range(300)]
        return ev.evaluate(student, questions, SimpleNamespace(verdicts=right), 4, draws=2)

    alone, together = measured(lambda k: {}), measured(lambda k: {"picture": f"{k // 3}.png"})
    assert alone["greedy"] == together["greedy"] == 0.34 and together["answers"][4]["picture"] == "1.png"
    assert alone["greedy_interval"] == ev.wilson(102, 300)
    for name in ("greedy_interval", "sampled_interval"):
        widths = [high - low for low, high in (x[name] for x in (alone, together))]
        assert abs(widths[1] / widths[0] - 3**0.5) < 0.15  # a hundred pictures, not three hundred questions
    sure = ev.interval([1] * 30, np.repeat(np.arange(10), 3))[0]
    assert sure == ev.wilson(10, 10)  # all right: no bootstrap would leave 1.0


# ------------------------------------------------------------------------------------------------ the command
def run_of_train(folder: Path, scores: list[int]) -> str:
    """A folder as train.py leaves it; three questions a picture."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(settings=dict(data_hash="0", judge="rule"))))
    rows = [dict(who="after", question=f"q{i}", picture=f"p{i // 3:02d}", greedy=x) for i, x in enumerate(scores)]
    (folder / "answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder)


def test_a_comparison_says_what_it_speaks_about(tmp_path, capsys):
    rng = np.random.default_rng(7)
    lean = np.repeat(rng.random(60), 3)
    a, b, c, d = (run_of_train(tmp_path / x, [int(y) for y in rng.random(180) < lean]) for x in "abcd")
    one = compare.compare([Path(a)], [Path(b)])["questions"]
    scores = (
        [json.loads(line)["greedy"] for line in Path(x, "answers.jsonl").read_text().splitlines()] for x in (b, a)
    )
    difference = 100 * np.subtract(*scores)
    assert one["p"] == compare.sign_flips(np.bincount(np.arange(180) // 3, difference))  # pictures, not questions
    compare.main([a, b])
    assert "(these weights only)" in capsys.readouterr().out
    compare.main([f"{a},{b}", f"{c},{d}", "--into", str(tmp_path / "out")])
    assert "(2 pairs of seeds)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/compare.json").read_text())["questions"]
    assert found["p"] == compare.between_seeds(found["a"]["values"], found["b"]["values"])["p"]
