"""Check trainings without a part, the comparison of pairs, and the tables."""

import ale_py
import numpy as np
import pandas as pd
import pytest

import what_helped as script
from pong.many_games_at_once import (
    Scene,
    close,
    encode,
    forward,
    initialize_model,
    make_games,
)
from pong.ppo_in_numpy import new_agent
from pong.set_up import recorded
from pong.train_to_win import SETTINGS, new_run, training
from pong.what_helped import (
    VARIANTS,
    compare,
    count_points,
    no_mirror,
    paired_interval,
    variant_training,
)

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
SHORT = SETTINGS | {"n_steps": 16}


def first_rollouts(n, settings=SHORT, **changed):
    """Return the agent and the experience of a training's first n rollouts."""
    run = variant_training(1, settings, **changed, n_games=8)
    results = [next(run) for _ in range(n)]
    run.close()
    return results


def dense(pair):
    return [matrix.toarray() for matrix in pair]


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(0)
    previous, current = rng.random((2, 5, 80, 32)) < 0.02
    actions = np.eye(3, 2, dtype=bool)[[0, 1, 2, 0, 1]]
    return Scene(previous, current, actions, np.zeros(5, bool))


def test_nothing_taken_away_is_the_agent_of_the_book():
    games = make_games(8)
    start = new_agent(initialize_model(np.random.default_rng(1)))
    book = training(games, new_run(start, 1), 1, SHORT)
    run, row = [next(book) for _ in range(2)][-1]
    close(games)
    agent, experience = first_rollouts(2)[-1]
    assert agent.n_updates == run.agent.n_updates == 16
    assert experience.actions.size * 2 == row["decisions"]
    for name, weights in run.agent.model.items():
        np.testing.assert_allclose(agent.model[name], weights, atol=1e-3)


@pytest.mark.parametrize("learn_first", [True, False])
def test_learn_first_plays_a_rollout_with_one_agent(learn_first):
    *_, (agent, experience) = first_rollouts(2, learn_first=learn_first)
    assert agent.n_updates == 16
    same = []
    for inputs, values in zip(experience.inputs, experience.values):
        _, now, _ = forward(inputs, agent.model)
        same.append(np.allclose(now, values, atol=1e-5))
    assert all(same) if learn_first else not any(same[:-1])


def test_without_the_third_action_nobody_stays():
    [(_, experience)] = first_rollouts(1, stay_bias=-1e4)
    assert not np.any(experience.actions == 2)
    assert np.isfinite(experience.log_probs).all()


def test_no_mirror_shows_the_court_once(scene):
    inputs, mirrored = dense(no_mirror(scene))
    np.testing.assert_array_equal(inputs, dense(encode(scene))[0])
    assert mirrored.shape == inputs.shape and not mirrored.any()


def test_each_variant_learns_and_differs_from_the_baseline():
    results = []
    for changed, functions in VARIANTS.values():
        assert set(changed) <= set(SETTINGS)
        run = first_rollouts(2, SHORT | changed, **functions)
        agent, experience = run[-1]
        assert agent.n_updates == 16 * changed.get("epochs", 4) / 4
        assert all(np.isfinite(w).all() for w in agent.model.values())
        results.append((agent.model["W1"], experience.values))
    baseline, *others = results
    for result in others:  # other weights, or at another time
        assert not all(map(np.array_equal, result, baseline))


def test_points_are_counted_by_part():
    settings = SHORT | {"n_steps": 256}
    rows, _ = count_points("1 epoch", 1, settings, 6_000, 4_000, n_games=8)
    assert [row["decisions"] for row in rows] == [4_096]
    rows, model = count_points("1 epoch", 1, settings, 4_096, 2_048, n_games=8)
    assert [row["decisions"] for row in rows] == [2_048, 4_096]
    assert {(row["variant"], row["seed"]) for row in rows} == {("1 epoch", 1)}
    played = first_rollouts(2, settings | {"epochs": 1})
    for row, (_, experience) in zip(rows, played):
        assert row["won"] == np.sum(experience.rewards == 1)
        assert row["lost"] == np.sum(experience.rewards == -1) > 0
    np.testing.assert_array_equal(model["W1"], played[-1][0].model["W1"])


def test_interval_of_pairs_is_that_of_their_differences():
    rng = np.random.default_rng(0)
    baseline = rng.normal(0.4, 0.1, 10)
    gain = rng.normal(0.05, 0.01, 10)
    mean, low, high = paired_interval(baseline + gain, baseline, rng)
    assert mean == pytest.approx(gain.mean())
    assert 0.03 < low < mean < high < 0.07


def test_compare_uses_only_pairs_and_says_what_is_known():
    first = pd.Series([0.3, 0.4, 0.5, 0.6, 0.7])
    nan = np.nan
    gains = {
        "worse": [-0.1, -0.12, -0.11, -0.1, -0.09],
        "better": [0.1, 0.12, nan, 0.1, 0.09],
        "mixed": [0.1, -0.1, 0.1, -0.1, 0.02],
        "few": [-0.1, -0.1, -0.1, nan, nan],
    }
    ends = {name: first + gain for name, gain in gains.items()}
    ends = pd.DataFrame({"first": first} | ends)
    table = compare(ends, np.random.default_rng(0)).set_index("variant")
    assert list(table["seeds"]) == [5, 4, 5, 3]
    assert list(table["effect"]) == ["less", "more", "not known", "not known"]
    assert table.loc["better", "difference"] == pytest.approx(0.1025)
    assert table.loc["few", ["low", "high"]].isna().all()


def test_ablations_go_on_and_count_what_is_complete(monkeypatch, tmp_path):
    calls = []

    def count(name, seed, settings, n_decisions):
        calls.append((name, seed))
        return [{"variant": name, "seed": seed}], initialize_model(
            np.random.default_rng(seed)
        )

    monkeypatch.setenv("PONG_ABLATIONS", str(tmp_path))
    monkeypatch.setattr(script, "count_points", count)
    monkeypatch.setattr(script, "SEEDS", (31, 32))
    first, second, *others = VARIANTS
    for job in ((first, 31), (first, 32), (second, 31), (first, 31)):
        script.record_ablation(*job)
    assert calls == [(first, 31), (first, 32), (second, 31)]
    rows, missing = script.complete_ablations()
    assert rows == [{"variant": first, "seed": s} for s in (31, 32)]
    assert missing == [second, *others]
    before = script.parts_folder()
    monkeypatch.setattr(script, "SETTINGS", SETTINGS | {"gamma": 0.5})
    assert script.parts_folder() != before  # other settings begin anew


def test_recorded_pairs_are_complete_and_of_unused_seeds():
    table = recorded("ablations")
    for variant, rows in table.groupby("variant"):
        assert set(rows["seed"]) == set(script.seeds_of(variant))
    assert not set(table["seed"]) & {*range(1, 6), *range(21, 31)}
    assert table.groupby(["variant", "seed"])["decisions"].max().nunique() == 1


@pytest.fixture(scope="module")
def ablations():
    table = recorded("ablations")
    table["points"] = table["won"] + table["lost"]
    return table


def test_what_the_page_says_of_the_parts(ablations):
    last = ablations[ablations["decisions"] > 250_000]
    share = last.assign(share=last["won"] / last["points"])
    ends = share.pivot(index="seed", columns="variant", values="share")
    ends = ends[list(VARIANTS)]
    parts = compare(ends, np.random.default_rng(0)).set_index("variant")
    few = parts[parts["seeds"] == 4]
    assert list(few.index) == ["1 epoch", "no clipping"]
    assert (few["effect"] == "less").all()
    baseline = ends.loc[31:34, "the agent of the book"].mean()
    assert (few["mean"] < baseline / 2).all()
    parts = parts[parts["seeds"] == 10]
    assert len(parts) == 4 and (parts["effect"] == "not known").all()
    assert parts.loc["discount: γ = 0.99", "difference"] > 0
    assert parts.loc["learn, then play", "difference"] > 0
    assert parts.loc["no third action", "low"] == pytest.approx(0, abs=0.015)
    points = ablations.groupby(["seed", "variant"])["points"].sum().unstack()
    lengths = ablations["decisions"].max() / points[list(VARIANTS)]
    longer = compare(lengths, np.random.default_rng(0)).set_index("variant")
    assert round(longer.loc["discount: γ = 0.99", "difference"]) == 11
    assert longer.loc["discount: γ = 0.99", "effect"] == "more"
    assert longer.loc["no mirror", "effect"] == "less"
    tenth = longer.loc["no mirror", "difference"] / lengths.iloc[:, 0].mean()
    assert round(tenth, 1) == -0.1


def test_what_the_page_says_of_a_lucky_baseline(ablations):
    trials = recorded("trials")
    table = trials.pivot(index="seed", columns="variant", values="share")
    table = table[trials["variant"].unique()]  # the baseline first
    last = ablations[ablations["decisions"] > 250_000]
    share = last.assign(share=last["won"] / last["points"])
    ends = share.pivot(index="seed", columns="variant", values="share")
    four = table[["as it is", "learning between the rollouts"]].to_numpy()
    names = ["the agent of the book", "learn, then play"]
    rng, ten = np.random.default_rng(0), ends[names].to_numpy()
    for weights, known in (([1, 0], False), ([-1, 1], True)):
        groups = four @ weights, ten @ weights
        a, b = (rng.choice(g, (10_000, len(g))).mean(axis=1) for g in groups)
        low, high = np.percentile(a - b, [2.5, 97.5])
        assert (low > 0 or high < 0) == known
        assert known or low > -0.01  # just reaches zero
    assert (ten @ [-1, 1]).mean() > 0
    effects = compare(table, np.random.default_rng(0)).set_index("variant")
    assert set(effects["effect"]) == {"less", "not known"}
    assert effects.loc["learning between the rollouts", "effect"] == "less"
    pairs = table.sub(table["as it is"], axis=0)
    for name in effects.index[effects["seeds"] == 2]:
        assert (pairs[name].dropna() < 0).all()
    assert (pairs["learning between the rollouts"] < 0).all()


def test_what_the_page_says_of_strokes():
    strokes = recorded("strokes").query("not serve")
    assert strokes["seed"].nunique() == len(script.SEEDS)
    steep = strokes["speed"] >= 7
    sent = strokes["player"] == "opponent"
    assert strokes.loc[sent & ~steep, "missed"].sum() == 0
    returns = strokes.groupby("seed")["mean_return"].first()
    share = strokes[sent & steep].groupby("seed")["balls"].sum()
    share /= strokes[sent].groupby("seed")["balls"].sum()
    came = strokes[~sent & steep].groupby("seed")[["balls", "missed"]].sum()
    missed = came["missed"] / came["balls"]
    assert share.corr(returns, "spearman") > 0.65
    assert missed.corr(returns, "spearman") < -0.65
    other = strokes[~sent & ~steep].groupby("seed")[["balls", "missed"]].sum()
    share = other["missed"] / other["balls"]
    assert abs(share.corr(returns, "spearman")) < 0.65 and share.min() > 0.3


def test_what_the_page_says_of_other_agents():
    table = recorded("comparison")
    assert (table.groupby("agent")["seed"].nunique() == 3).all()
    assert table["minutes"].max() < 5.1 and (table["games"] == 50).all()
    ours, *others = table.groupby("agent", sort=False)["mean_return"]
    assert ours[1].min() > 0
    assert all(returns.max() < -20 for _, returns in others)  # as random play
    decisions = table.groupby("agent", sort=False)["decisions"].median()
    ours, *networks, first_chapter = decisions
    for n in networks:
        assert 14_000 < n / 5 < 17_500
        assert ours / n == pytest.approx(8, abs=1)
        assert 1_000_000 / (n / 5) > 55  # minutes
    assert first_chapter > ours / 2
