# Made by `make notebooks` from content/what-helped.md: edit that.

import numpy as np
import pandas as pd
from scipy import sparse

from pong.a_better_critic import Critic
from pong.many_games_at_once import (
    Experience,
    choose_actions,
    close,
    collect,
    encode,
    first_scene,
    forward,
    initialize_model,
    make_games,
    reset,
)
from pong.ppo_in_numpy import make_rollout, minibatches, new_agent, update
from pong.train_to_win import (
    N_GAMES,
    anneal,
    bootstrap_interval,
    generator,
    new_run,
)


def ages(agent, batches, coefficients):
    """Yield an agent as it is, then after each step of learning."""
    yield agent
    for batch in batches:
        agent, _ = update(agent, batch, **coefficients)
        yield agent


def play_variant(group, scene, agents, rng, n_steps, every, encode, sent):
    """Return the Experience of n_steps, the scene after it, the last agent."""
    records, agent = [], next(agents)
    for t in range(n_steps):
        if t and t % every == 0:
            agent = next(agents, agent)
        inputs = encode(scene)
        logits, values, _ = forward(inputs, agent.model)
        actions, log_probs = choose_actions(logits, rng)
        group.send(np.array(sent, np.int32)[actions])
        decision = (inputs, actions, log_probs, values)
        scene, record = collect(group, scene, decision)
        records.append(record)
    agent = [agent, *agents][-1]  # after the steps that are left
    inputs, *columns = zip(*records)
    actions, log_probs, values, *rest = map(np.array, columns)
    values = np.vstack([values, forward(encode(scene), agent.model)[1]])
    experience = Experience(list(inputs), actions, log_probs, values, *rest)
    return experience, scene, agent


def variant_training(
    seed,
    settings,
    encode=encode,
    sent=(2, 3, 0),
    stay_bias=-1.0,
    learn_first=False,  # all steps before the next rollout, not during it
    critic=False,  # if there is one, it judges
    n_games=N_GAMES,
):
    """Yield the agent and its experience after each rollout."""
    rng = np.random.default_rng(seed)
    agent = new_agent(initialize_model(rng, stay_bias=stay_bias))
    start = new_run(agent, seed, critic)
    play_rng, learn_rng, rng = map(generator, start.generators)
    judge = critic and Critic(start.critic, rng, settings["gamma"])
    n_steps, batches, now = settings["n_steps"], [], {}
    every = max(1, n_steps // (settings["epochs"] * settings["n_minibatches"]))
    scene = first_scene(reset(games := make_games(n_games, 1), seed)[0])
    try:
        for done in range(0, settings["decisions"], n_steps * n_games):
            agents = ages(agent, batches, now)
            agents = iter([*agents][-1:]) if learn_first else agents
            past, scene, agent = play_variant(
                games[0], scene, agents, play_rng, n_steps, every, encode, sent
            )
            remaining = 1 - done / settings["decisions"]
            past = judge(past, [scene], remaining) if judge else past
            now = anneal(settings, remaining)
            rollout = make_rollout(past, settings)[0]
            batches = minibatches(rollout, settings, learn_rng)
            yield agent, past
    finally:
        close(games)


def no_mirror(scene):
    """Return the inputs of the network, and nothing as the mirrored court."""
    inputs, mirrored = encode(scene)
    return inputs, sparse.csr_matrix(mirrored.shape, dtype=np.float32)


VARIANTS = {  # name: changed settings, changed arguments
    "the plain agent": ({}, {}),
    "discount: γ = 0.99": ({"gamma": 0.99}, {}),
    "no third action": ({}, {"stay_bias": -1e4}),
    "no mirror": ({}, {"encode": no_mirror}),
    "learn, then play": ({}, {"learn_first": True}),
    "1 epoch": ({"epochs": 1}, {}),
    "no clipping": ({"clip_coef": 1e9}, {}),
    "three parts less": (
        {"gamma": 0.99},
        {"stay_bias": -1e4, "learn_first": True},
    ),
    "more entropy": ({"entropy_coef": 0.03}, {}),
    "button held down": ({}, {"sent": (4, 5, 1)}),
}


def count_points(name, seed, settings, n_decisions, every=50_000, **more):
    """Return rows with the points of each stretch of a variant's training."""
    changed, functions = VARIANTS[name]
    rows, done, won, lost = [], 0, 0, 0
    run = variant_training(seed, settings | changed, **functions, **more)
    for _, experience in run:
        done += experience.actions.size
        won += int(np.sum(experience.rewards > 0))
        lost += int(np.sum(experience.rewards < 0))
        if done >= every * (len(rows) + 1):
            row = {"variant": name, "seed": seed, "decisions": done}
            rows.append(row | {"won": won, "lost": lost})
            won = lost = 0
        if done >= n_decisions:
            break
    run.close()
    return rows


def paired_interval(changed, baseline, rng):
    """Return the mean difference of pairs, and its 95 % interval."""
    differences = np.asarray(changed) - np.asarray(baseline)
    return float(differences.mean()), *bootstrap_interval(differences, rng)


def unpaired_interval(a, b, rng):
    """Return the same of two groups that are not pairs: a minus b."""
    means = [rng.choice(x, (10_000, len(x))).mean(axis=1) for x in (a, b)]
    low, high = np.percentile(means[0] - means[1], [2.5, 97.5])
    return float(np.mean(a) - np.mean(b)), float(low), float(high)


def compare(ends, rng):
    """Return a row for each column: how it differs from the first one.

    ends has a row for each seed. Below four pairs there is no interval.
    """
    first, *others = ends.columns
    rows = []
    for name in others:
        pairs = ends[[first, name]].dropna()
        mean, low, high = paired_interval(pairs[name], pairs[first], rng)
        if len(pairs) < 4:
            low = high = np.nan
        effect = "less" if high < 0 else "more" if low > 0 else "not known"
        own = pairs[name].mean()
        rows.append((name, len(pairs), own, mean, low, high, effect))
    names = "variant seeds mean difference low high effect"
    return pd.DataFrame(rows, columns=names.split())
