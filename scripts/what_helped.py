"""Record what "What helped" shows.

    python scripts/what_helped.py ablations    (in .venv)
    python scripts/what_helped.py comparison   (in .venv/peers)
    python scripts/what_helped.py bench        (in .venv/peers)

`ablations` trains each variant with each seed, side by side, which takes hours.
It keeps what is complete, so it can be stopped, and goes on unless the code has
changed. The figures count decisions, so the computer may do other things.
`comparison` counts seconds (MINUTES for each training) and wants a computer
that does nothing else; `bench` does the same and writes nothing.
"""

import os
import time
from importlib import metadata

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import numpy as np
import pandas as pd
from ale_py.vector_env import AtariVectorEnv

from pong.many_games_at_once import close, initialize_model, make_games
from pong.pong_from_pixels import (
    episode_gradient,
    initialize_policy,
    make_pong,
    play_episode,
    rmsprop_step,
)
from pong.ppo_in_numpy import new_agent
from pong.train_to_win import N_GAMES, PLAIN, SETTINGS, new_run, train
from pong.what_helped import VARIANTS, count_points
from recording import BUILD, main, record, save_table

# No setting was chosen with these seeds. Ten pairs decide nothing about the parts that
# the book argues for. The third action looked worst, so it got ten fresh seeds, as did
# the agent without three parts. Two variants, whose effect is large, have four.
# Fewer, and shorter: SEEDS=4 DECISIONS=150000 python scripts/what_helped.py ablations
FIRST_SEED, SEEDS = 31, int(os.environ.get("SEEDS", "20"))
SEEDS_OF = {
    "the plain agent": range(0, 20),
    "no third action": range(0, 20),
    "three parts less": range(10, 20),
    "button held down": range(10, 20),
    "1 epoch": range(0, 4),
    "no clipping": range(0, 4),
}
N_DECISIONS = int(os.environ.get("DECISIONS", "250000"))
COMPARISON_SEEDS = (1, 2, 3)
MINUTES = float(os.environ.get("MINUTES", "10"))


def seeds_of(variant):
    """Return the seeds with which a variant is trained."""
    numbers = SEEDS_OF.get(variant, range(10))
    return [FIRST_SEED + k for k in numbers if k < SEEDS]


def ablation_of(job):
    """Return rows with the points of a variant's training."""
    variant, seed, n_decisions = job
    return count_points(variant, seed, PLAIN, n_decisions)


def ablations():
    """Record the trainings of all variants with their seeds."""
    jobs = [(v, seed, N_DECISIONS) for v in VARIANTS for seed in seeds_of(v)]
    # Fewer or shorter trainings are not what the page shows.
    few = {"SEEDS", "DECISIONS"} & os.environ.keys()
    name = BUILD / "ablations" if few else "ablations"
    record(name, ablation_of, jobs, decisions=N_DECISIONS, settings=PLAIN)


def ours(seconds, seed):
    """Return decisions, seconds, and last games of the book's training.

    Its schedule counts decisions, so a short training tells the speed first.
    """
    agent = new_agent(initialize_model(np.random.default_rng(seed)))
    settings = SETTINGS
    for time_limit in (min(30, seconds), seconds):
        games = make_games(N_GAMES)
        start = new_run(agent, seed)
        run, history = train(games, start, seed, settings, time_limit)
        close(games)
        last = history[-1]
        speed = last["decisions"] / last["seconds"]
        settings = SETTINGS | {"decisions": int(speed * seconds)}
    return last["decisions"], last["seconds"], run.returns[-50:]


def first_chapter(seconds, seed):
    """Return the same of the first chapter's loop, in batches of ten games."""
    rng, env = np.random.default_rng(seed), make_pong()
    model = initialize_policy(6400, 200, rng)
    zeros = {name: np.zeros_like(w) for name, w in model.items()}
    total, cache, returns, decisions = zeros, zeros, [], 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        episode = play_episode(env, model, rng, None if returns else seed)
        gradient = episode_gradient(episode, model, 0.99)
        total = {name: total[name] + gradient[name] for name in zeros}
        returns.append(float(episode.rewards.sum()))
        decisions += len(episode.rewards)
        if len(returns) % 10 == 0:
            model, cache = rmsprop_step(model, total, cache, 1e-4, 0.99)
            total = zeros
    env.close()
    return decisions, time.perf_counter() - start, returns[-50:]


def sb3_ppo(seconds, seed):
    """Return the same of Stable-Baselines3's PPO, set as in its RL Zoo."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    def left():  # of the time, from 1 to 0
        return max(0.0, 1 - (time.perf_counter() - start) / seconds)

    class Stop(BaseCallback):
        def _on_step(self):
            return left() > 0

    start = time.perf_counter()
    # Its wrapper skips frames itself: the emulator must not skip them as well.
    settings = {"frameskip": 1, "repeat_action_probability": 0.25}
    envs = make_atari_env("ALE/Pong-v5", 8, seed=seed, env_kwargs=settings)
    model = PPO(
        "CnnPolicy",
        VecFrameStack(envs, n_stack=4),
        n_steps=128,
        n_epochs=4,
        batch_size=256,
        learning_rate=lambda _: 2.5e-4 * left(),
        clip_range=lambda _: 0.1 * left(),
        vf_coef=0.5,
        ent_coef=0.01,
        stats_window_size=50,
        seed=seed,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(100_000_000, callback=Stop())
    returns = [game["r"] for game in model.ep_info_buffer]
    envs.close()
    return model.num_timesteps, time.perf_counter() - start, returns


def q_network(n_actions):
    """Return CleanRL's network for PQN, with layer normalization."""
    from torch import nn

    layers = []
    for n_in, n_out, size, stride, side in (
        (4, 32, 8, 4, 20),
        (32, 64, 4, 2, 9),
        (64, 64, 3, 1, 7),
    ):
        convolution = nn.Conv2d(n_in, n_out, size, stride)
        norm = nn.LayerNorm([n_out, side, side])
        layers += [convolution, norm, nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(3136, 512), nn.LayerNorm(512)]
    layers += [nn.ReLU(), nn.Linear(512, n_actions)]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(layer.weight, 2**0.5)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def pqn(seconds, seed, n=8, n_steps=128, gamma=0.99, q_lambda=0.65):
    """Return the same of PQN with CleanRL's settings: Q(lambda), no replay."""
    import torch

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    # The emulator's own 84 × 84 gray pictures, four in a stack.
    envs = AtariVectorEnv("pong", n, repeat_action_probability=0.25)
    network = q_network(envs.single_action_space.n)
    optimizer = torch.optim.RAdam(network.parameters(), lr=2.5e-4)
    frames, _ = envs.reset(seed=seed)
    scores, returns, decisions = np.zeros(n), [], 0
    start = time.perf_counter()

    def look(pictures):
        return network(torch.as_tensor(pictures, dtype=torch.float32) / 255)

    while (left := 1 - (time.perf_counter() - start) / seconds) > 0:
        optimizer.param_groups[0]["lr"] = 2.5e-4 * left
        chance = max(0.01, 1 - (1 - left) / 0.1 * 0.99)
        seen, did, rewards, values, ends = [], [], [], [], []
        for _ in range(n_steps):
            with torch.no_grad():
                best, greedy = look(frames).max(dim=1)
            drawn = rng.integers(0, envs.single_action_space.n, n)
            actions = np.where(rng.random(n) < chance, drawn, greedy.numpy())
            seen.append(frames.copy())
            did.append(actions)
            frames, reward, terminated, truncated, _ = envs.step(actions)
            scores += reward
            over = terminated | truncated
            returns.extend(scores[over])
            scores[over] = 0
            rewards.append(reward)
            values.append(best.numpy())
            ends.append(over)
        with torch.no_grad():
            target = next_value = look(frames).max(dim=1)[0].numpy()
        targets = [None] * n_steps
        for t in reversed(range(n_steps)):
            mixed = q_lambda * target + (1 - q_lambda) * next_value
            target = np.sign(rewards[t]) + gamma * mixed * ~ends[t]
            targets[t], next_value = target, values[t]
        seen, did = np.concatenate(seen), torch.as_tensor(np.concatenate(did))
        targets = torch.as_tensor(np.concatenate(targets), dtype=torch.float32)
        for _ in range(4):
            for rows in np.array_split(rng.permutation(len(seen)), 4):
                q = look(seen[rows])[np.arange(len(rows)), did[rows]]
                loss = torch.mean((q - targets[rows]) ** 2)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
                optimizer.step()
        decisions += n * n_steps
    envs.close()
    return decisions, time.perf_counter() - start, returns[-50:]


CONTENDERS = {
    "this book": ours,
    "Stable-Baselines3 PPO": sb3_ppo,
    "PQN, CleanRL's settings": pqn,
    "the first chapter": first_chapter,
}


def bench():
    """Return and print how all agents play after the same time, by seed."""
    rows = []
    for seed in COMPARISON_SEEDS:
        for name, contender in CONTENDERS.items():
            decisions, seconds, returns = contender(60 * MINUTES, seed)
            row = {"agent": name, "seed": seed, "minutes": seconds / 60}
            row |= {"decisions": decisions, "games": len(returns)}
            rows.append(row | {"mean_return": np.mean(returns or [np.nan])})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows).sort_values(
        "agent",
        key=lambda names: names.map(list(CONTENDERS).index),
        kind="stable",  # each with its seeds in order
    )
    by_agent = table.groupby("agent", sort=False)["mean_return"]
    print(by_agent.agg(["median", "min", "max"]).round(1).to_string())
    return table


def comparison():
    """Record what `bench` prints."""
    packages = ("stable-baselines3", "torch")
    versions = {name: metadata.version(name) for name in packages}
    save_table(
        "comparison",
        bench().round({"minutes": 2, "mean_return": 2}),
        environment="ALE/Pong-v5",
        minutes=MINUTES,
        versions=versions,
    )


if __name__ == "__main__":
    commands = (
        ablations,
        bench,
        comparison,
    )
    main({command.__name__: command for command in commands})
