"""Runs against each other: statistics of listeners, where runs come from, the pages, and what is refused."""

import itertools
import json
import math
import re
import subprocess

import numpy as np
import pytest
from runs import TEXTS, make_run, record
from scipy.stats import binom

from higgs.audio import load_audio
from higgs.comparison import page as compare_page
from higgs.comparison import runs as run_finder
from higgs.comparison.agreement import krippendorff_alpha, sign_flip_p
from higgs.comparison.figures import axis_limit, difference_bar
from higgs.comparison.listening import PREFERENCE, SCORES, design, make_test, matched
from higgs.comparison.many import Choice, compare_runs, front, texts_of
from higgs.comparison.ratings import preference_row, rated
from higgs.comparison.runs import Run, find_run, folder_md5
from higgs.comparison.tables import cells, found_from, power, verdict, what_differs
from higgs.data.loudness import speech_level
from higgs.evaluate.statistics.intervals import (
    Resampling,
    detectable_difference,
    permutation_p,
    smallest_p,
    wilson_interval,
)
from higgs.evaluate.statistics.paired_runs import decide
from higgs.workflow.tables import write_rows

# ---- statistics


@pytest.mark.parametrize(
    ("values", "p"),
    [
        ([1] * 8 + [-1] * 2, 2 * (1 + 10 + 45) / 1024),  # the sign test of 8 against 2
        ([2, 1], 2 / 4), ([3, -1, 2], 4 / 8), ([5], 1), ([0, 0], 1), ([], 1), ([0, 1, 1, 1, 1, 1], 2 / 32),
    ],
)  # fmt: skip
def test_the_exact_test_by_hand(values, p):
    assert sign_flip_p(values) == pytest.approx(p) == sign_flip_p([-value for value in values])


def test_the_exact_test_by_enumeration():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values = generator.integers(-4, 5, size=8)
        sums = [abs(np.dot(signs, values)) for signs in itertools.product((-1, 1), repeat=8)]
        assert sign_flip_p(values.tolist()) == pytest.approx(np.mean([s >= abs(values.sum()) for s in sums]))


# Krippendorff 2011: four observers, twelve units, values missing; he gives 0.849 for interval data.
OBSERVERS = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
UNITS = [[int(v) for v in unit if v != "."] for unit in zip(*(line.split() for line in OBSERVERS), strict=True)]


@pytest.mark.parametrize(
    ("units", "alpha"),
    [
        (UNITS, 0.849), ([[1, 1], [2, 2]], 1),
        ([[1, 2], [2, 1]], -0.5),  # observed 4 / 4, expected 8 / (4 * 3)
        ([[1, 2], [2, 1], [7]], -0.5), ([[3, 3], [3, 3]], None), ([[1], [2]], None), ([], None),
    ],
)  # fmt: skip
def test_agreement_by_hand(units, alpha):
    found = krippendorff_alpha(units)
    assert found is None if alpha is None else found == pytest.approx(alpha, abs=5e-4)


def listener(generator, preference: float, texts: int = 20) -> dict[str, int]:
    """Answers of -2 to 2: above zero with the chance `preference`."""
    signs = np.where(generator.random(texts) < preference, 1, -1)
    return {str(text): int(sign * generator.integers(1, 3)) for text, sign in enumerate(signs)}


@pytest.mark.parametrize(
    ("listeners", "preference", "least"), [(1, 0.5, 0.95), (3, 0.5, 0.95), (1, 0.9, 0.95), (3, 0.75, 0.95)]
)
def test_a_known_preference_is_found_and_a_tossed_coin_is_not(listeners, preference, least):
    right, seeds = 0, 200
    expected = "not told apart" if preference == 0.5 else "B is better"
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        row, _ = preference_row({str(name): listener(generator, preference) for name in range(listeners)})
        decide([row], Resampling())
        right += row["verdict"] == expected
    # Of so many seeds, as many as there are in all but one of a thousand cases where the share is `least`.
    assert right >= binom.ppf(0.001, seeds, least)


@pytest.mark.parametrize(
    ("n", "tests", "skewed"), [(40, 1, False), (40, 13, False), (120, 13, False), (120, 13, True), (16, 1, False)]
)
def test_the_detectable_difference_is_found_in_80_percent_of_cases(n, tests, skewed):
    generator, trials = np.random.default_rng(0), 400
    noise = generator.exponential(size=(trials, n)) - 1 if skewed else generator.normal(size=(trials, n))
    settings = Resampling(4000)
    true = detectable_difference(1 / n**0.5, n, tests, settings)
    ones = np.ones((trials, n))
    p = permutation_p(np.stack([ones, ones, 1 + true + noise, ones]), settings)
    assert np.mean(p <= 0.05 / tests) == pytest.approx(0.8, abs=0.1 if skewed else 0.06)


@pytest.mark.parametrize("listeners", [1, 3, 30])
def test_more_listeners_of_the_same_texts_are_not_more_texts(listeners):
    for score, apart in ((2, wilson_interval(6, 6)), (0, wilson_interval(3, 6))):
        row, _ = preference_row({str(name): {str(text): score for text in range(6)} for name in range(listeners)})
        expected = [200 * value - 100 for value in apart]
        assert [row["difference"], row["low"], row["high"]] == pytest.approx(expected)


def metric_row(metric: str, n: int, p: float = 0.5, error: float = 1.0, **more):
    row = {
        "metric": metric,
        "title": metric,
        "better": "lower",
        "n": n,
        "unit": "texts",
        "a": 1.0,
        "b": 2.0,
        "difference": 1.0,
    }
    return row | {"low": 0.5, "high": 1.5, "p": p, "standard_error": error, "changed": n, "letter": "B"} | more


@pytest.mark.parametrize(
    ("n", "tests", "least", "blind"),
    [(7, 13, 13 * 2 / 128, True), (5, 1, 2 / 32, True), (7, 1, 2 / 128, False), (120, 13, 13 / 10_001, False)],
)  # fmt: skip
def test_what_cannot_be_found_is_said_in_numbers(n, tests, least, blind):
    rows = [metric_row(f"m{place}", n, p=smallest_p(n)) for place in range(tests)]
    decide(rows, Resampling())
    assert rows[0]["smallest_p_holm"] == pytest.approx(least) == pytest.approx(rows[0]["p_holm"])
    said = " ".join(power(rows))
    assert (found_from(rows[0]) == "nothing") == blind == (f"With {n} texts nothing can be found" in said)
    assert (f"no p is below {least:.2g}" in said) == blind and ("80 % of cases" in said) != blind
    assert "no difference" not in (said + verdict(rows)).lower()


def test_cells_and_verdicts():
    row = metric_row("wer_percent", 40, p_holm=0.02, smallest_p_holm=0.001, detectable=2.0, verdict="A is better") | {
        "p": 0.0001
    }
    assert cells(row)[3:7] == ["+1.0 [0.5, 1.5]", "<0.001", "0.020", "2.0"]
    assert verdict([row]) == "wer_percent: A is better."
    assert verdict([row | {"verdict": "equal"}]) == "The runs are equal in every metric."
    assert what_differs([{"a": {"b": [1, 2], "c": 3}}, {"a": {"b": [1], "c": 3}}]) == [["a.b", "1, 2", "1"]]


@pytest.mark.parametrize("metric", ["wer_percent", "similarity", "mos_overall", "length_ratio", "preference", "score"])
def test_rounding_errors_are_drawn_as_a_point_and_large_differences_fit(metric):
    noise, large = (metric_row(metric, 9, low=-x, high=x, difference=x / 2) for x in (1e-6, 40.0))
    for row, widest in ((noise, 2), (large, 200)):
        bar = difference_bar(row, axis_limit([row]))
        left, right = (float(re.search(rf'interval" .*?{end}="([\d.]+)"', bar)[1]) for end in ("x1", "x2"))
        assert 0 <= left < right <= 200 and right - left <= widest
    assert axis_limit([noise, large]) > 40


def test_the_front_has_whom_nobody_beats_in_both():
    assert front([(10, 0.7), (8, 0.6), (12, 0.65), (8, 0.5), (9, 0.9)]) == [1, 4]
    assert front([(10, 0.7), (10, 0.7)]) == [0, 1]


# ---- where runs come from


@pytest.fixture
def two(tmp_path):
    a = make_run(tmp_path / "first", (300, 600), errors=[0, 1, 0, 0, 0, 0], temperature=0.2)
    b = make_run(tmp_path / "second", (900, 1200), gain=0.05, errors=[1, 1, 0, 4, 0, 0], temperature=0.9)
    return [find_run(str(path), tmp_path) for path in (a, b)]


def lock(outs: dict[str, str], temperature: float) -> str:
    stages = {}
    for name in ("tokenize", "generate", "evaluate"):
        deps = [{"path": "higgs/x.py", "md5": "1"}]
        deps += [{"path": f"results/{d}", "md5": outs[d]} for d in ("tokenize", "generate") if name == "evaluate"]
        stages[name] = {"cmd": name, "deps": deps, "params": {"params.yaml": {"generate.temperature": temperature}}}
        stages[name]["outs"] = [{"path": f"results/{name}", "md5": outs[name]}]
    return json.dumps({"schema": "2.0", "stages": stages})


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A Git repository with results, whose committed lock is `lock(committed outputs, 0.2)` -> its folder and sums."""
    root = make_run(tmp_path / "checkout", (300, 600))
    monkeypatch.chdir(root)
    sums = {name: folder_md5(root / "results" / name) for name in ("tokenize", "generate", "evaluate")}
    others = {name: f"{place}" * 32 + ".dir" for place, name in enumerate(sums)}
    (root / "dvc.lock").write_text(lock(others, 0.2))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q", "-b", "main"], ["add", "dvc.lock"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    return root, sums


def to_cache(root, sums, names):
    """The results as objects of DVC's cache."""
    import hashlib

    for name in names:
        files = sorted(p for p in (root / "results" / name).rglob("*") if p.is_file())
        listing = []
        for file in files:
            md5 = hashlib.md5(file.read_bytes()).hexdigest()
            listing.append({"md5": md5, "relpath": file.relative_to(root / "results" / name).as_posix()})
            place = root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
        place = root / ".dvc/cache/files/md5" / sums[name][:2] / sums[name][2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(listing, sort_keys=True))


@pytest.mark.parametrize(
    ("present", "cached", "where", "note"),
    [
        ((0.2, "here"), False, "workspace", "the workspace, the results of this machine"),
        ((0.9, "here"), "runs", "scratch", "from the cache of runs, the results of this machine"),
        ((0.9, "here"), False, "nowhere", ""),  # the workspace is an experiment's
        ((0.2, "changed"), False, "nowhere", ""),  # files that no run made
        ((0.2, "committed"), True, "scratch", ""),
    ],
)
def test_a_revision_is_found_wherever_it_has_run(checkout, tmp_path, present, cached, where, note):
    root, sums = checkout
    temperature, state = present
    (root / "dvc.lock").write_text(lock(sums, temperature))
    if state == "committed":
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "y"], check=True)
        (root / "dvc.lock").write_text(lock({name: "f" * 32 + ".dir" for name in sums}, 0.9))
    if cached:
        to_cache(root, sums, sums)
        for name, stage in json.loads(lock(sums, 0.2))["stages"].items():
            entry = root / ".dvc/cache/runs/ab" / name / "0123"
            entry.parent.mkdir(parents=True, exist_ok=True)
            entry.write_text(json.dumps(stage))
    if state == "changed":
        (root / "results/generate/audio/t0-s0.flac").write_bytes(b"something else")
    if where == "nowhere":
        with pytest.raises(ValueError, match=r"main: its results are neither .* `git worktree add") as caught:
            find_run("main", tmp_path / "scratch")
        assert "Hit us up" not in str(caught.value)
        return
    run = find_run("main", tmp_path / "scratch")
    assert (
        (run.folder == run_finder.EVALUATED) == (where == "workspace")
        and note in run.note
        and bool(note) == bool(run.note)
    )
    rows = [row for row in run.rows() if row["group"] == "generated"]
    assert len(rows) == len(TEXTS) and all(run.audio(row) for row in rows)


@pytest.mark.parametrize(
    ("cwd", "name"),
    [("results", "evaluate"), ("results", "."), ("results/evaluate", "."), ("results/evaluate", ".."),
     ("", "results/evaluate"), ("", ".")],
)  # fmt: skip
def test_a_folder_named_from_within_has_its_sound(tmp_path, monkeypatch, cwd, name):
    root = make_run(tmp_path / "run", (300, 600))
    monkeypatch.chdir(root / cwd)
    run = find_run(name, tmp_path / "scratch")
    assert run.name == name and all(run.audio(row) for row in run.rows() if row["group"] == "generated")


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../secret.flac", "results/../../secret.flac", "", None, "results/none.flac"]
)
def test_a_table_names_no_sound_outside_of_its_run(tmp_path, path):
    (tmp_path / "secret.flac").write_bytes(b"x")
    run = Run("x", tmp_path / "run/results/evaluate", tmp_path / "run")
    assert run.audio(record("generated", "t", 0, "x") | {"path": path}) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [("no-such-name", "is no folder, no revision of Git, and no experiment"), ("empty", "holds no utterances table")],
)
def test_a_run_that_is_not_there_is_told_in_one_sentence(checkout, tmp_path, name, message):
    (checkout[0] / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_run(name, tmp_path / "scratch")


# ---- the page


def data_of(page: str):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_every_text_is_in_the_page_with_the_sound_of_all_runs(two):
    page = compare_page.to_page(compare_runs(two, Choice(settings=Resampling(200))))
    data = data_of(page)
    assert len(data["rows"]) == 6 and all(None not in row for row in data["rows"]) and len(data["clips"]) == 12
    assert page.count('class="text"') == 6 and "sampling.temperature" in page
    assert page.index("Four.") < page.index("One red apple.") < page.index("Two old boats.")  # by how much they changed
    assert "alert(1)</" not in page and "<i>3" not in page and "http" not in page.replace("http-equiv", "")
    assert "no difference" not in page.lower()


@pytest.mark.parametrize(("less", "all_heard"), [(20_000, True), (40_000, False)])
def test_a_page_is_at_most_so_large_and_the_most_changed_texts_have_their_sound(two, monkeypatch, less, all_heard):
    """First at a lower bit rate, then without the sound of those that changed least."""
    findings = compare_runs(two, Choice(settings=Resampling(200)))
    whole = len(compare_page.to_page(findings).encode())
    monkeypatch.setattr(compare_page, "MOST_BYTES", whole - less + 100_000)
    page = compare_page.to_page(findings)
    assert len(page.encode()) <= whole - less
    with_sound = [row[0] is not None for row in data_of(page)["rows"]]
    assert 0 < sum(with_sound) and (sum(with_sound) == 6) == all_heard and with_sound[0]
    assert f"{sum(with_sound)} of them with sound" in page


def test_three_runs_are_ranked_and_each_stands_against_the_first(two, tmp_path):
    third = make_run(tmp_path / "third", (1500, 1800), errors=[4] * 6)
    runs = [*two, find_run(str(third), tmp_path), find_run(str(third), tmp_path)]
    findings = compare_runs(runs, Choice(settings=Resampling(500)))
    assert {row["letter"] for row in findings.rows} == {"B", "C", "D"}
    wer = [row for row in findings.rows if row["metric"] == "wer_percent"]
    assert [row["letter"] for row in wer] == ["B", "C", "D"] and wer[1]["difference"] == pytest.approx(100 - 100 / 24)
    order = [row["run"] for row in next(iter(findings.rankings.values()))]
    assert order == [0, 1, 2, 3]
    page = compare_page.to_page(findings)
    assert "not told apart from the best" in page and 'class="scatter"' in page and page.count("<tr data-row") == 6


def test_clusters_are_not_counted_as_texts_and_one_of_them_is_refused(two, tmp_path):
    runs = [*two, find_run(str(make_run(tmp_path / "third", (1500, 1800), errors=[4] * 6)), tmp_path)]
    voices = Choice(cluster="voice", settings=Resampling(200))
    for some in (two, runs):
        with pytest.raises(ValueError, match="no metric has values in 2 voices of both .*: at least 2 are needed"):
            compare_runs(some, voices)
    for run in runs:
        rows = [row | {"voice": "ben"} if row["script"] in ("t1", "t3") else row for row in run.rows()]
        for row in rows:
            row["similarity"] = None if row["voice"] == "ben" else row["similarity"]
        write_rows(run.folder / "utterances.parquet", rows)
    findings = compare_runs(runs, voices)
    wer = findings.rows[0]
    assert (wer["n"], wer["unit"], wer["changed"], wer["texts"]) == (2, "voices", 2, 6)
    assert power(findings.rows)[0].startswith("With 2 voices nothing can be found in every metric")
    # Of one voice the similarity has no test, and so no ranking in which all would be the best.
    assert [metric.name for metric in findings.rankings] == ["wer_percent", "mos_overall"]
    page = compare_page.to_page(findings)
    assert ">2 of 6<" in page and "bootstrapped over voices" in page and page.count("<td>best</td>") == 2


def test_without_a_recogniser_no_word_is_struck_out(two):
    for run, heard in zip(two, (None, ""), strict=True):
        write_rows(run.folder / "utterances.parquet", [row | {"heard": heard} for row in run.rows()])
    page = compare_page.to_page(compare_runs(two, Choice(settings=Resampling(200))))
    assert page.count("<del>") == len(TEXTS) and "<p>One red apple.</p>" in page
    assert "<p>He said: &lt;script&gt;alert(1)&lt;/script&gt; &amp; left.</p>" in page


def test_the_sample_that_changed_most_is_shown_first():
    a = [record("generated", "t", seed, "", wer_percent=0.0) for seed in (0, 1, 2)]
    b = [record("generated", "t", seed, "", wer_percent=w) for seed, w in ((0, 0.0), (1, 50.0), (2, 25.0))]

    class Found:
        tables, letters = [a, b], "AB"

    assert [(change, rows[0]["seed"]) for change, rows in texts_of(Found)] == [(50.0, 1), (25.0, 2), (0.0, 0)]


# ---- listening tests


def test_the_page_of_a_test_names_no_run_and_repeats(two):
    page, key = make_test(two, PREFERENCE, texts=4, seed=3)
    assert (
        key["page"]
        == make_test(two, PREFERENCE, texts=4, seed=3)[1]["page"]
        != make_test(two, PREFERENCE, 4, 4)[1]["page"]
    )
    data = data_of(page)
    for secret in (
        "first",
        "second",
        "t0-s0",
        "generated",
        "results",
        *(key["trials"][0]["stimuli"][i]["sha256"] for i in key["trials"][0]["stimuli"]),
    ):
        assert secret not in json.dumps({**data, "clips": []}), secret
    assert "first" not in page.split("<main>")[1].split("<script")[0]
    assert "alert(1)</" not in page and "http" not in page.replace("http-equiv", "")
    sides = [
        [key["trials"][n]["stimuli"][one["id"]]["system"] for one in trial["stimuli"]]
        for n, trial in enumerate(data["trials"])
    ]
    assert sorted(sides) == [[0, 1], [0, 1], [1, 0], [1, 0]] and len(data["training"]) == 2
    assert not {t["text"] for t in data["training"]} & {t["text"] for t in data["trials"]}


def test_scores_have_a_hidden_recording_and_the_codec_and_copies_are_refused(two):
    trials, _ = design(two, SCORES, 6, 0, "generated")
    assert all({s.system for s in trial.stimuli} == {0, 1, "recording", "codec"} for trial in trials)
    assert len({tuple(s.system for s in trial.stimuli) for trial in trials}) > 1
    with pytest.raises(ValueError, match="all 6 texts are the same sound"):
        design([two[0], two[0]], PREFERENCE, 6, 0, "generated")
    with pytest.raises(ValueError, match="two for a preference, got 3"):
        design([*two, two[0]], PREFERENCE, 6, 0, "generated")


def test_all_sounds_have_one_level_and_none_is_clipped(two):
    loaded = [load_audio(run.root / f"results/generate/audio/t{n}-s0.flac") for run in two for n in range(3)]
    levels = [speech_level(waveform, 24_000) for waveform in matched(loaded)]
    assert max(levels) - min(levels) < 0.01 and levels[0] == pytest.approx(-26, abs=0.01)
    spiky = loaded[0][0] * 0.01
    spiky[1000] = 0.9
    louder = matched([loaded[1], (spiky, 24_000), (spiky * 0, 24_000)])
    assert louder[1].abs().max() <= 0.981 and math.isclose(
        speech_level(louder[0], 24_000), speech_level(louder[1], 24_000), abs_tol=0.05
    )


def answer_file(path, data, key, name="anna", prefers=1, **changes):
    """The answers of a listener who prefers that run by far, as the page writes them."""
    answers = []
    for trial, known in zip(data["trials"], key["trials"], strict=True):
        ids = [one["id"] for one in trial["stimuli"]]
        second = known["stimuli"][ids[1]]["system"] == prefers
        answers.append({"trial": trial["trial"], "stimuli": ids, "score": 2 if second else -2})
    path.write_text(
        json.dumps({"format": data["format"], "page": key["page"], "listener": name, "answers": answers} | changes)
    )
    return path


@pytest.fixture
def heard(two, tmp_path):
    page, key = make_test(two, PREFERENCE, texts=6, seed=1)
    (tmp_path / "listen.key.json").write_text(json.dumps(key))
    return tmp_path / "listen.key.json", data_of(page), key


@pytest.mark.parametrize(
    ("given", "prefers", "best"), [((0, 1), 1, "B"), ((0, 1), 0, "A"), ((1, 0), 1, "A"), ((1, 0), 0, "B")]
)
def test_a_preference_is_of_the_run_whichever_side_it_was_on(two, heard, tmp_path, given, prefers, best):
    key_file, data, key = heard
    files = [answer_file(tmp_path / f"{name}.json", data, key, name, prefers) for name in ("anna", "Ben <b>")]
    rows, notes = rated(files, key_file, [two[place] for place in given], Resampling())
    (row,) = rows
    decide(rows, Resampling())
    assert (row["n"], row["p"], row["verdict"]) == (6, 2 / 64, f"{best} is better")
    assert row["b"] == (100 if best == "B" else 0) and "Agreement of listeners" in " ".join(notes)
    findings = compare_runs([two[place] for place in given], Choice(settings=Resampling(200)), rows, notes)
    assert findings.rows[0]["metric"] == "preference" and "listeners&#x27; preference" in compare_page.to_page(findings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page": "0" * 64}, r"anna\.json is of another page \(0{12}\) than .*listen\.key\.json"),
        ({"listener": "x" * 61}, "listener"), ({"listener": ""}, "listener"), ({"format": "other"}, "format"),
        ({"answers": []}, "holds no answer"), ({"more": 1}, "unknown key 'more'"),
        ({"answers": [{"trial": "1", "stimuli": ["aa", "bb"], "score": 1}]}, "is not of this page"),
        ({"answers": [{"trial": "1", "stimuli": ["aa", "bb"], "score": 3}]}, "score"),
        ({"answers": [{"trial": "99", "stimuli": ["aa", "bb"], "score": 0}]}, "trial '99'"),
    ],
)  # fmt: skip
def test_ratings_of_another_page_and_broken_ones_are_refused_by_name(two, heard, tmp_path, changes, message):
    key_file, data, key = heard
    path = answer_file(tmp_path / "anna.json", data, key, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        rated([path], key_file, two, Resampling())
    assert "anna.json" in str(caught.value)


def test_ratings_that_do_not_fit_together_are_refused(two, heard, tmp_path):
    key_file, data, key = heard
    path = answer_file(tmp_path / "anna.json", data, key)
    with pytest.raises(ValueError, match="both of the listener 'anna'"):
        rated([path, answer_file(tmp_path / "again.json", data, key)], key_file, two, Resampling())
    other = find_run(str(make_run(tmp_path / "third", (1500, 1800))), tmp_path)
    with pytest.raises(ValueError, match="listeners heard .*first and .*second, and not the sounds of"):
        rated([path], key_file, [other, two[1]], Resampling())
    for content, message in (("{", "not JSON"), ("x" * 1_000_001, "larger than"), ('{"page": NaN}', "NaN")):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            rated([path], key_file, two, Resampling())
    with pytest.raises(FileNotFoundError, match="key.json does not exist"):
        rated([path], tmp_path / "no.key.json", two, Resampling())


def test_scores_of_listeners_and_those_who_did_not_hear_the_anchor(two, tmp_path):
    page, key = make_test(two, SCORES, texts=6, seed=1)
    key_file = tmp_path / "listen.key.json"
    key_file.write_text(json.dumps(key))
    levels = {"anna": {0: 40, 1: 70, "recording": 95, "codec": 60}, "ben": {0: 45, 1: 71, "recording": 50, "codec": 60}}
    files = []
    for name, level in levels.items():
        answers = [
            {"trial": t["trial"], "scores": {i: level[s["system"]] + n for i, s in t["stimuli"].items()}}
            for n, t in enumerate(key["trials"])
        ]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(
            json.dumps({"format": "higgs-ratings-1", "page": key["page"], "listener": name, "answers": answers})
        )
    (row,), notes = rated(files, key_file, two, Resampling())
    assert (row["n"], row["difference"], row["p"]) == (6, pytest.approx(28), 2 / 64)
    text = " ".join(notes)
    assert "in half of the texts or more: ben." in text and "recording 75, codec 62" in text and "alpha" in text
