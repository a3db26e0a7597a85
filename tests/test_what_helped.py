"""Check trainings without a part, the comparison of pairs, and the tables."""

from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from ale_py.vector_env import AtariVectorEnv

import pong.what_helped as helped
import recording  # scripts/recording.py
import what_helped as script
from conftest import says
from pong.many_games_at_once import close, forward, initialize_model, make_games
from pong.ppo_in_numpy import new_agent
from pong.set_up import recorded
from pong.train_to_win import PLAIN, SETTINGS, bootstrap_interval, new_run, training

PAGE = "what-helped"


def test_each_variant_takes_away_what_it_says():
    """Without a change it is the plain agent: the page prints that."""
    found = {}
    for name, (changed, functions) in helped.VARIANTS.items():
        assert set(changed) <= set(PLAIN)
        settings = PLAIN | {"n_steps": 16} | changed
        run = helped.variant_training(1, settings, **functions, n_games=4)
        agent, experience = [next(run) for _ in range(2)][-1]
        run.close()
        assert agent.n_updates == 16 * changed.get("epochs", 4) / 4
        assert all(np.isfinite(w).all() for w in agent.model.values())
        assert np.isfinite(experience.log_probs).all()
        values = [forward(inputs, agent.model)[1] for inputs in experience.inputs]
        same = np.isclose(values, experience.values[:-1], atol=1e-5).all(axis=1)
        assert all(same) if "learn_first" in functions else not any(same[:-1])
        assert (experience.actions == 2).any() == ("stay_bias" not in functions)
        found[name] = agent.model["W1"], experience.values
    # So early, no ball has met the paddle, and the button has done nothing yet.
    button = found.pop("button held down")
    baseline, *others = found.values()
    assert all(map(np.array_equal, button, baseline))
    assert not any(all(map(np.array_equal, other, baseline)) for other in others)


def test_with_the_critic_it_is_the_agent_of_train_to_win():
    settings = SETTINGS | {"n_steps": 32}
    agent = new_agent(initialize_model(np.random.default_rng(1)))
    games, start = make_games(4), new_run(agent, 1)
    book = training(games, start, 1, settings)
    variant = helped.variant_training(1, settings, critic=True, n_games=4)
    for _ in range(3):
        (run, _), (agent, _) = next(book), next(variant)
    variant.close()
    close(games)
    for name, weights in run.agent.model.items():
        assert not np.array_equal(weights, start.agent.model[name])
        assert np.allclose(weights, agent.model[name], atol=1e-3)


def test_the_button_is_held_down(monkeypatch):
    """Not one action goes to the games without it, and all three go there."""
    sent, found, send = [], [], AtariVectorEnv.send
    spy = lambda *a: (sent.append(a[1]), send(*a))[1]  # noqa: E731
    monkeypatch.setattr(AtariVectorEnv, "send", spy)
    for name in ("the plain agent", "button held down"):
        functions = helped.VARIANTS[name][1]
        run = helped.variant_training(1, PLAIN, **functions, n_games=4)
        actions = next(run)[1].actions
        run.close()
        found.append([{*np.array(sent)[actions == k].tolist()} for k in range(3)])
        sent.clear()
    assert found == [[{2}, {3}, {0}], [{4}, {5}, {1}]]  # up, down, stay


def test_points_are_counted_by_part(monkeypatch):
    rewards = np.random.default_rng(0).integers(-1, 2, (9, 5, 8))  # of rollouts
    models, closed = iter(range(9)), []

    def training(seed, settings, **functions):
        assert (seed, settings) == (7, PLAIN | {"epochs": 1})
        try:
            for model, r in zip(models, rewards):
                experience = SimpleNamespace(actions=r, rewards=r)
                yield SimpleNamespace(model=model), experience
        finally:
            closed.append(functions)

    monkeypatch.setattr(helped, "variant_training", training)
    rows = helped.count_points("1 epoch", 7, PLAIN, 200, every=70, n_games=8)
    assert [row.pop("decisions") for row in rows] == [80, 160]
    for row, part in zip(rows, (rewards[:2], rewards[2:4])):
        won, lost = (part == 1).sum(), (part == -1).sum()
        assert row == {"variant": "1 epoch", "seed": 7, "won": won, "lost": lost}
    assert next(models) == 5 and closed == [{"n_games": 8}]


def test_compare_uses_only_pairs_and_says_what_is_known():
    first, nan = pd.Series([0.3, 0.4, 0.5, 0.6, 0.7]), np.nan
    gains = {
        "worse": [-0.1, -0.12, -0.11, -0.1, -0.09],
        "better": [0.1, 0.12, nan, 0.1, 0.09],
        "mixed": [0.1, -0.1, 0.1, -0.1, 0.02],
        "few": [-0.1, -0.1, -0.1, nan, nan],
    }
    ends = pd.DataFrame({"first": first} | {k: first + g for k, g in gains.items()})
    table = helped.compare(ends, np.random.default_rng(0)).set_index("variant")
    assert list(table["seeds"]) == [5, 4, 5, 3]
    assert list(table["effect"]) == ["less", "more", "not known", "not known"]
    assert table.loc["better", "difference"] == pytest.approx(0.1025)
    assert table.loc["few", ["low", "high"]].isna().all()


def test_what_is_recorded_is_not_done_twice(monkeypatch, tmp_path):
    work = Mock(side_effect=lambda job: [{"job": job}])
    monkeypatch.setattr(recording, "BUILD", tmp_path)
    for job in (1, 2, 1):
        part = recording.part_of("table", job)
        assert recording.rows_of(work, job, part)[0] == [{"job": job}]
    assert [call.args for call in work.call_args_list] == [(1,), (2,)]
    monkeypatch.setattr(recording, "CODE", "other")
    assert not recording.part_of("table", 1).exists()  # other code begins anew


# What the page says


@pytest.fixture(scope="module")
def ablations():
    table = recorded("ablations")
    table["points"] = table["won"] + table["lost"]
    return table


@pytest.fixture(scope="module")
def ends(ablations):
    """Return the shares of the last points that were won, the baseline first."""
    last = ablations[ablations["decisions"] > 250_000]
    last = last.assign(share=last["won"] / last["points"])
    ends = last.pivot(index="seed", columns="variant", values="share")
    return ends[list(helped.VARIANTS)]


def test_recorded_pairs_are_complete_and_of_unused_seeds(ablations):
    for variant, rows in ablations.groupby("variant"):
        assert set(rows["seed"]) == set(script.seeds_of(variant))
    assert not set(ablations["seed"]) & {*range(1, 6), *range(21, 31)}
    assert ablations.groupby(["variant", "seed"])["decisions"].max().nunique() == 1


def test_what_the_page_says_of_the_parts(ablations, ends):
    parts = helped.compare(ends, np.random.default_rng(0)).set_index("variant")
    few = parts[parts["seeds"] == 4]
    assert list(few.index) == ["1 epoch", "no clipping"]
    assert (few["effect"] == "less").all()
    assert (few["mean"] < ends.loc[31:34, "the plain agent"].mean() / 2).all()
    assert ends[few.index].max().max() < ends["the plain agent"].min()
    assert parts.loc["more entropy", ["seeds", "effect"]].tolist() == [10, "less"]
    parts = parts[parts["seeds"] >= 10].drop("more entropy")
    assert len(parts) == 6 and (parts["effect"] == "not known").all()
    assert parts.loc["three parts less", "difference"] == pytest.approx(0, abs=0.01)
    alike = ends.corr(min_periods=10).iloc[0, 1:]
    assert np.round([alike.min(), alike.max()], 1).tolist() == [-0.3, 0.4]
    stay = ends["no third action"] - ends["the plain agent"]
    rng = np.random.default_rng(0)
    for seeds, mean in ((range(31, 41), 0.090), (range(41, 51), -0.005)):
        low, high = bootstrap_interval(stay.loc[seeds].to_numpy(), rng)
        assert low < 0 < high and round(stay.loc[seeds].mean(), 3) == mean
        assert low > -0.01 if mean > 0 else round(high, 2) == 0.06
    points = ablations.groupby(["seed", "variant"])["points"].sum().unstack()
    lengths = ablations["decisions"].max() / points[list(helped.VARIANTS)]
    longer = helped.compare(lengths, np.random.default_rng(0)).set_index("variant")
    assert round(longer.loc["discount: γ = 0.99", "difference"]) == 11
    assert longer.loc["discount: γ = 0.99", "effect"] == "more"
    assert longer.loc["no mirror", "effect"] == "less"
    tenth = longer.loc["no mirror", "difference"] / lengths.iloc[:, 0].mean()
    assert round(tenth, 1) == -0.1


def test_what_the_page_says_of_the_button(ablations):
    share = ablations.assign(share=ablations["won"] / ablations["points"])
    share = share.set_index(["decisions", "seed", "variant"])["share"]
    names = ["the plain agent", "button held down"]
    early, late = (share.loc[n].unstack()[names].dropna() for n in (102_400, 253_952))
    assert early.mean().round(2).tolist() == [0.13, 0.21] and len(late) == 10
    rng = np.random.default_rng(0)
    assert helped.compare(early, rng)["effect"].tolist() == ["more"]
    assert helped.compare(late, rng)["effect"].tolist() == ["not known"]
    assert late.std().iloc[0] > 3 * late.std().iloc[1]  # "close together"
    points = ablations.groupby(["seed", "variant"])["points"].sum().unstack()[names]
    sooner = helped.compare(253_952 / points, rng).iloc[0]
    assert round(sooner["difference"]) == -19 and sooner["effect"] == "less"


def test_what_the_page_says_of_a_lucky_baseline(ends):
    trials = recorded("trials")
    table = trials.pivot(index="seed", columns="variant", values="share")
    table = table[trials["variant"].unique()]  # the baseline first
    four = table[["as it is", "learning between the rollouts"]].to_numpy()
    ten = ends[["the plain agent", "learn, then play"]].dropna().to_numpy() @ [-1, 1]
    pairs = four[:, 0], ends["the plain agent"].to_numpy()
    apart, low, high = helped.unpaired_interval(*pairs, np.random.default_rng(0))
    assert [*map(len, pairs)] == [4, 20] and low < 0 < high
    change = four @ [-1, 1], ten
    more, _, high = helped.unpaired_interval(*change, np.random.default_rng(0))
    assert high < 0 < ten.mean() and 0.4 < apart / -more < 0.6  # "half of it"
    effects = helped.compare(table, np.random.default_rng(0)).set_index("variant")
    assert set(effects["effect"]) == {"less", "not known"}
    between = "learning between the rollouts"
    assert effects.loc[between, "effect"] == "less"
    pairs = table.sub(table["as it is"], axis=0)
    for name in [between, *effects.index[effects["seeds"] == 2]]:
        assert (pairs[name].dropna() < 0).all()


def test_what_the_page_says_of_sticky_actions():
    firsts, easier = [], recorded("not-sticky")
    for runs in (easier, recorded("reference-runs")):
        runs = [runs[runs["mean_return"] >= n].groupby("seed") for n in (0, 15, 18)]
        firsts.append([run["decisions"].min() / 1e6 for run in runs])
    here = "0 after {:.2f} million decisions, +15 after {:.2f}, and +18 after {:.2f}"
    says(PAGE, here, *(first.median() for first in firsts[0]))
    cells = [x for first in firsts[0] for x in (first.min(), first.max())]
    says(PAGE, " | no |" + 3 * " {:.2f}–{:.2f} |", *cells)
    assert [len(first) for many in firsts for first in many] == [5, 5, 5, 5, 5, 2]
    assert easier.groupby("seed")["mean_return"].last().min() > 19
    assert [first[0].idxmax() for first in firsts] == [4, 4]
    longer = [x for a, b in zip(*firsts) for x in ((b / a).min(), (b / a).max())]
    says(
        PAGE, "{:.1f} to {:.1f} times as long to 0, but {:.1f} to {:.1f} times", *longer
    )


def test_what_the_page_says_of_other_agents():
    table = recorded("comparison")
    assert (table.groupby("agent")["seed"].nunique() == 3).all()
    assert table["minutes"].between(9.1, 10.1).all() and (table["games"] == 50).all()
    speed = table["decisions"] / table["minutes"]
    assert speed[:3].min() > 60 * 2_100 and speed[:3].max() < 60 * 2_350
    ours, *others = table.groupby("agent", sort=False)["mean_return"]
    assert ours[1].round().eq(16).all()
    assert all(returns.between(-21, -20).all() for _, returns in others)
    decisions = table.groupby("agent", sort=False)["decisions"].median()
    ours, *networks, first_chapter = decisions
    for n in networks:
        assert 11_000 < n / 10 < 13_000 and 9.5 < ours / n < 11.5
    assert first_chapter / min(networks) == pytest.approx(4, abs=0.2)
