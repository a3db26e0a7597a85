"""What is recorded of agents with the critic and without it."""

from itertools import product

import numpy as np
import pandas as pd
from numpy.testing import assert_equal

from conftest import says
from pong.ppo_in_numpy import new_agent
from pong.set_up import facts, recorded
from pong.train_to_win import PLAIN, SETTINGS, new_run
from pong.what_helped import compare, paired_interval
from pong.what_the_critic_brings import Average

PAGE = "what-the-critic-brings"


def test_the_average_follows_the_weights():
    average = Average(0.5)
    for weight in (8, 4, 2):
        agent = new_agent({"W1": np.full((2, 3), weight, np.float32)})
        average(run := new_run(agent, 1), [])
    average(run, [], at_once=True)  # `train` hands over the last Run twice
    assert_equal(average.model["W1"], np.full((2, 3), 4, np.float32), strict=True)


def ways(differences):
    signs = np.array([*product((1, -1), repeat=len(differences))])
    return np.sum(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)


def test_what_the_page_says_of_pairs():
    names = "critic-pairs", "critic-parts", "critic-ablations"
    tables = [recorded(n).rename(columns={"variant": "agent"}) for n in names]
    points = pd.concat(tables).eval("share = won / (won + lost)")
    shares = points.pivot_table("share", ["decisions", "seed"], "agent").loc[253_952]
    pairs, parts, removed = (
        shares.loc[t["seed"].unique(), t["agent"].unique()] for t in tables
    )
    assert [*map(len, (pairs, parts, removed))] == [10, 10, 20]
    table, settings = (compare(t, np.random.default_rng(0)) for t in (pairs, parts))
    assert {*settings["seeds"], *settings["effect"]} == {10, "not known"}
    longer = recorded("critic-discount").eval("share = won / (won + lost)")
    longer = longer.pivot(index=["decisions", "seed"], columns="gamma")["share"]
    early, later = (longer.loc[n][[1.0, 0.99]] for n in (253_952, 1_003_520))
    looks = removed.loc[:310], removed.loc[311:].iloc[:, :2].dropna(), later
    found = [e for t in looks for e in compare(t, np.random.default_rng(0))["effect"]]
    effects = ["more", "not known", "not known", "less", "less", "more", "not known"]
    less = [sum(t[0.99] < t[1.0]) for t in (early, later)]
    assert (found, less) == (effects, [5, 4])
    assert abs(later.mean().diff().iloc[1]) < 0.005  # "with a discount and without"
    says(PAGE, "win {:.0f} % of their points by then", 100 * later[1.0].mean())
    n = tables[2].eval("n = won + lost").pivot_table("n", "seed", "agent", "sum")
    lengths = (253_952 / n[removed.columns[1::-1]]).dropna().to_numpy().T
    slower = paired_interval(*lengths, np.random.default_rng(0))
    longer = "a point takes {:.0f} decisions longer ({:.0f} to {:.0f}, twenty pairs)"
    says("what-helped", longer, *slower)
    sixteen = np.vstack([early, looks[1]]).T[::-1]
    interval = paired_interval(*sixteen, np.random.default_rng(0))
    says(PAGE, "on average {:.2f} more, from {:+.2f} to {:+.2f}", *interval)
    assert [*table["effect"]] == ["more", "more", "less"]
    here = "agents win {:.0f} % of their points, and those with the critic and its "
    here += "settings {:.0f} %. With the critic *alone*, and nothing else changed, "
    here += "they win {:.0f} %, too"
    says(PAGE, here, *(100 * pairs.mean()[:3]))
    says(PAGE, "(by {:.2f} to {:.2f} of the points", *table.loc[1, ["low", "high"]])
    gains = pairs.iloc[:, 1:].sub(pairs["the plain agent"], axis=0)
    assert (gains > 0).sum().tolist() == [9, 9, 0]
    says(PAGE, "those agents win {:.0f} %", 100 * pairs.mean().iloc[3])
    assert gains.idxmin().iloc[:2].nunique() == 1  # "the same seed"
    level = np.sort(gains, axis=0)[0, :2]
    assert level[0] < -0.2 and -0.01 < level[1]  # "far behind", "level"
    assert abs(np.diff(pairs.mean())[1]) < 0.005  # "the same"
    says(PAGE, "settings, which wins {:.0f} % of its p", 100 * parts.mean().iloc[0])
    says(PAGE, "without them win {:.2f} less", -settings["difference"].iloc[-1])
    kept = removed.mean()[["no clipping", "1 epoch"]] / removed.iloc[:4, 0].mean()
    assert [*kept.round(1)] == [0.2, 0.7]  # "a fifth as much, and ... seven tenths"


def test_what_the_page_says_of_whole_trainings():
    old, new = map(recorded, ("plain-runs", "reference-runs"))
    names = "reference-runs gauges more-runs critic-speed critic-average "
    names += "critic-pairs critic-parts critic-ablations"
    assert all(facts(name)["settings"] == SETTINGS for name in names.split())
    for name in ("plain-runs", "ablations"):
        assert facts(name)["settings"] | {"faster": []} == PLAIN
    high = [[t[t["mean_return"] >= n] for t in (old, new)] for n in (0, 15)]
    even, good = ([t.groupby("seed")["decisions"].min() for t in ts] for ts in high)
    assert 1e6 < even[0].max() and even[1].max() < 5e5 and [*map(len, good)] == [4, 5]
    assert sum(even[1] < even[0] - 1e5) == 3 and ways(even[1] - even[0]) == 6
    sooner, low, _ = paired_interval(*even[::-1], np.random.default_rng(0))
    says(PAGE, "even game {:,.0f} decisions sooner on average", round(-sooner, -4))
    says(PAGE, "from about 50,000 to {:,.0f}, is too short", round(-low, -4))
    middle = [sorted([*t, 9e6])[2] / 1e6 for t in good]  # one never gets there
    here = "passed zero after {:.0f}, {:.0f}, {:.0f}, and {:.0f} thousand decisions"
    says(PAGE, here, *(even[1].loc[:4] / 1000))
    four = good[1].loc[:4] / 1e6
    says(PAGE, "+15 after {:.1f}, {:.1f}, {:.1f}, and {:.1f} m", *four)
    ends = [t.groupby("seed")["mean_return"].last() for t in (old, new)]
    assert (ends[1] - ends[0]).mean().round() == 2
    says(PAGE, "first three ended at {:+.1f}, {:+.1f}, and {:+.1f}", *ends[1].loc[:3])
    says(PAGE, "one plain agent is left behind at {:+.1f}", ends[0].min())
    average = recorded("critic-average")  # these are the same trainings
    for name, runs in (("the plain agent", old), ("with the critic", new)):
        both = average[average["agent"] == name].merge(runs, on=["seed", "decisions"])
        assert len(both) > 20 and both["training"].equals(both["mean_return"])
    highest = [t.groupby("seed")["mean_return"].max() for t in (old, new)]
    assert [sum(t >= 18) for t in highest] == [0, 2]
    assert recorded("critic-games")["return"].min() > 0
    ten = pd.concat([new, recorded("more-runs")])
    runs = [ten[ten["mean_return"] >= n].groupby("seed") for n in (0, 15, 18)]
    first = [run["decisions"].min().sort_values() / 1e6 for run in runs]
    assert [*map(len, first)] == [10, 10, 6]
    says(PAGE, "after {:.1f} million decisions (of all ten, after", middle[1])
    says(PAGE, "ten, after {:.1f}), and without", first[1].median())
    says(PAGE, "and without the critic after {:.1f}", middle[0])
    even, good = (run.iloc[[0, -1]] for run in first[:2])
    says(PAGE, "an even game after {:.1f} to {:.1f} million decisions", *even)
    says(PAGE, "All ten reach +15, after {:.1f} to {:.1f} million", *good)
    says("what-helped", "{:.1f} to {:.1f} million to reach 0", *even)
    says("what-helped", "{:.1f} to {:.1f} million to reach +15", *good)
    nine = "nine only with shorter ones, after {:.1f} to {:.1f} million"
    says(PAGE, nine, *first[1].iloc[[1, -1]])
    lowest = ten.groupby("seed")["mean_return"].last().min()
    says(PAGE, "none ends below {:+.1f}", lowest)
    speeds = recorded("critic-speed")["decisions_per_second"].to_numpy()
    ratios = 100 * speeds[::2] / speeds[1::2]
    says(PAGE, "made {:.0f} to {:.0f} % of the decisions", ratios.min(), ratios.max())


def test_what_the_page_says_of_new_games():
    table = recorded("critic-average")
    new = table[table["agent"] == "with the critic"]
    now = new[new["decisions"] == 253_952].groupby("actions").mean(numeric_only=True)
    assert (now["return"] - now["training"]).round().tolist() == [12, 17]
    played = table[table["weights"] == "average"]
    looks = played.pivot_table("return", "decisions", ["agent", "actions", "seed"])
    still = np.minimum(looks, looks.shift(-1, fill_value=21))["with the critic"]
    first = [sorted((still[way] >= 0).idxmax() // 1000) for way in ("drawn", "greedy")]
    assert first == [[200, 200, 253, 253, 352], [200, 200, 200, 253, 352]]
    assert (still >= 15).any().loc[lambda good: good].index.tolist() == [("greedy", 1)]
    means = looks.mean().unstack("agent").groupby("actions").mean().to_numpy()
    seeds = looks.mean().unstack("agent").groupby("actions")
    assert [ways(np.diff(part)[:, 0]) for _, part in seeds] == [6, 6]
    assert np.round(means[:, 1] - means[:, 0]).tolist() == [8, 8]
    drawn, greedy = (looks.T.xs(way, level=1) for way in ("drawn", "greedy"))
    gain = (looks.loc[1_200_128] - looks.loc[602_112])["with the critic"]
    gain = gain.groupby("actions").mean()  # drawn, greedy
    says(
        PAGE, "gain {:.1f} points on average with drawn actions and {:.1f} with", *gain
    )
    drawing = (greedy - drawn).groupby("agent").mean().round().to_numpy()
    assert drawing[[1, 1, 0], [1, -1, -1]].tolist() == [4, 0, 3]
    runs = recorded("reference-runs")
    assert 93 in runs.query("seed == 1")["games"].tolist()
    for _, run in runs.groupby("seed"):
        assert np.interp(254_000, run["decisions"], run["seconds"]) < 50
