"""Record the results that the notebooks show, with their own code.

    python record.py runs agent finish evaluation games plateau strokes ladder
    python record.py comparison speed ladder_speed
    python record.py erasing variants_of_the_game points
    python record.py scale_out

Each name is a part; `make record` and `make bench` call them. Those in the
third line belong to "Inside the agent", `scale_out` to the chapter of that
name, `games` to the first page, the others to "Train to win". One more part,
`repeated`, records nothing: it copies the functions of "Train to win" into
the chapters that repeat them. A part writes its table or weights beside this
file, and what made them into a .json of the same name. Nothing here is edited
by hand.
"""

import ast
import csv
import hashlib
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from datetime import date
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path

DATA = Path(__file__).resolve().parent
SOURCE = DATA.parent / "train-to-win.md"
BUILD = DATA.parents[1] / "_build"
INSIDE = DATA.parent / "inside-the-agent.md"
SCALE_OUT = DATA.parent / "scale-out.md"
sys.path.insert(0, str(DATA.parents[1] / "tests"))

from conftest import notebook_functions, notebook_value
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe, read_frames
from matplotlib.figure import Figure
from PIL import Image

SEEDS = (1, 2, 3, 4, 5)
# Ladder and strokes are the beginning of trainings as long as this.
EARLY = {"decisions": 2_000_000}
STROKES_DECISIONS, STROKES_GAMES = 400_000, 20
LADDER_SEEDS, LADDER_DECISIONS, LADDER_ROUNDS = (1, 2), 200_000, 2
PLATEAU_SEEDS, PLATEAU_DECISIONS = (1, 2, 3, 4, 5), 1_000_000
AGENT_SEEDS, AGENT_DECISIONS = (2,), 4_000_000
FINISH_SEED, FINISH = (
    11,
    {"decisions": 3_000_000, "learning_rate": 1e-3, "entropy_coef": 0.002},
)
NEVER = -1e4  # a bias with which an action has no chance
EVALUATION_GAMES = 100
# "Inside the agent": games of each kind, and the seed of the first one.
ERASING_GAMES, VARIANT_GAMES, POINTS_GAMES = 30, 20, 40
FIRST_SEED = 200_000
# "Scale out": trainings with and without Ray, and the other measurements.
SCALE_OUT_SEEDS, SCALE_OUT_DECISIONS = (1, 2, 3, 4, 5), 250_000
SCALE_OUT_SECONDS = 25
MINUTES = float(os.environ.get("MINUTES", "10"))  # of the comparison


def processor():
    """Return the name of the processor, as far as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return re.search(r"model name\s*: (.*)", text)[1]
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def provenance(**facts):
    """Return what made a result, to be written beside it."""
    packages = ("numpy", "scipy", "gymnasium", "ale-py")
    return {
        "made with": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.system(),
            "Python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
            "date": date.today().isoformat(),
        },
        **facts,
    }


def write(name, write_to):
    """Write a file beside the final one, then move it into place."""
    path = DATA / name
    partial = path.with_name(f".{name}.partial{path.suffix}")
    write_to(partial)
    os.replace(partial, path)
    update_hashes()


def write_table(name, rows, facts):
    """Write rows as CSV, and what made them as JSON."""

    def write_rows(path):
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write(f"{name}.csv", write_rows)
    write_facts(name, facts)


def write_facts(name, facts):
    """Write what made a result."""
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    write(f"{name}.json", lambda path: path.write_text(text, encoding="utf-8"))


def update_hashes():
    """Write the SHA-256 of the recorded files into the notebooks."""
    for source in (SOURCE, INSIDE, SCALE_OUT):
        old = text = source.read_text(encoding="utf-8")
        for path in DATA.iterdir():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            text = re.sub(
                rf'("{re.escape(path.name)}": )(?:"\w*"|\(\s*"\w*"\s*\))',
                rf'\1"{digest}"',
                text,
            )
        if text != old:
            source.write_text(text, encoding="utf-8")


def train(code, settings, seed, max_seconds=float("inf")):
    """Return the agent and the history of a training from random weights."""
    start = code.new_agent(
        code.initialize_model(code.np.random.default_rng(seed))
    )
    games = code.make_games(notebook_value(SOURCE, "N_GAMES"))
    result = code.train(games, start, seed, settings, max_seconds)
    code.close(games)
    return result


def peak_memory():
    """Return the most memory that this process has used, in MB."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def table(seed, history):
    """Return a row about every 10 seconds of a training.

    And those with which the mean reaches the levels that the page asks for:
    in 10 seconds, a training takes 50,000 decisions.
    """
    rows, due, levels = [], 0, (0, 15)
    for row in history:
        reached = levels and row["mean_return"] >= levels[0]
        if row["games"] >= 50 and (
            reached or row["seconds"] >= due or row is history[-1]
        ):
            levels = levels[1:] if reached else levels
            if row["seconds"] >= due:
                due = row["seconds"] + 10
            rows.append(
                {
                    "seed": seed,
                    "decisions": row["decisions"],
                    "seconds": round(row["seconds"], 1),
                    "games": row["games"],
                    "mean_return": round(row["mean_return"], 2),
                }
            )
    return rows


def early_settings():
    """Return the settings of which ladder and strokes are the beginning."""
    return notebook_value(SOURCE, "settings") | EARLY


def runs():
    """Record a training with each of the reference seeds."""
    settings, code = (
        notebook_value(SOURCE, "settings"),
        notebook_functions(SOURCE),
    )
    facts = provenance(
        seeds=SEEDS, games=notebook_value(SOURCE, "N_GAMES"), settings=settings
    )
    rows, memory = [], []
    for seed in SEEDS:
        _, history = train(code, settings, seed)
        rows += table(seed, history)
        memory.append(peak_memory())
        print(rows[-1], flush=True)
    facts["peak memory after each seed (MB)"] = memory
    write_table("reference-runs", rows, facts)


def agent_settings():
    """Return the settings with which the shipped agent is trained."""
    return notebook_value(SOURCE, "settings") | {"decisions": AGENT_DECISIONS}


def train_agent(seed):
    """Return how a long training ended, and the weights."""
    code, checkpoints = notebook_functions(SOURCE), BUILD / f"agent-{seed}"
    start = code.new_agent(
        code.initialize_model(code.np.random.default_rng(seed))
    )
    games = code.make_games(notebook_value(SOURCE, "N_GAMES"), 1)
    agent, history = code.train(
        games, start, seed, agent_settings(), folder=checkpoints
    )
    code.close(games)
    return history[-1]["mean_return"], agent.model


def agent():
    """Train the agent that is shipped: longer than a reader would wait.

    One training per core. The best one is shipped, by its last 50 games of
    training. How good it is, `evaluation` finds out on other games. It takes
    an hour, so it keeps checkpoints, and goes on from them.
    """
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn")
    ) as pool:
        results = dict(zip(AGENT_SEEDS, pool.map(train_agent, AGENT_SEEDS)))
    facts = provenance(
        games=notebook_value(SOURCE, "N_GAMES"), settings=agent_settings()
    )
    facts["mean return of the last 50 training games, by seed"] = {
        seed: round(mean, 2) for seed, (mean, _) in results.items()
    }
    facts["seed"] = max(results, key=lambda seed: results[seed][0])
    model = results[facts["seed"]][1]
    code = notebook_functions(SOURCE)
    write("agent.safetensors", lambda p: code.save_model(p, model, facts))
    write_facts("agent", facts)


def finish():
    """Train the agent that `agent` has written further, in smaller steps."""
    code, path = notebook_functions(SOURCE), DATA / "agent.safetensors"
    facts = json.loads((DATA / "agent.json").read_text(encoding="utf-8"))
    if "finished with" in facts:
        sys.exit("this agent is finished; `agent` trains one from the start")
    settings = notebook_value(SOURCE, "settings") | FINISH
    games = code.make_games(notebook_value(SOURCE, "N_GAMES"), 1)
    trained, history = code.train(
        games,
        code.new_agent(code.load_model(path)),
        FINISH_SEED,
        settings,
        folder=BUILD / "agent-finish",
    )
    code.close(games)
    facts["finished with"] = provenance(
        seed=FINISH_SEED,
        games=notebook_value(SOURCE, "N_GAMES"),
        settings=settings,
    )
    facts["finished with"]["mean return of the last 50 training games"] = (
        round(history[-1]["mean_return"], 2)
    )
    del facts["mean return of 100 games"]  # of the agent before
    write(path.name, lambda p: code.save_model(p, trained.model, facts))
    write_facts("agent", facts)


def evaluation():
    """Evaluate the shipped weights."""
    code = notebook_functions(SOURCE)
    model, rows = code.load_model(DATA / "agent.safetensors"), []
    rng = code.np.random.default_rng(0)
    result = {}
    for way, actions_rng in (("sampled", rng), ("greedy", None)):
        returns, decisions = code.evaluate(
            model, EVALUATION_GAMES, actions_rng
        )
        result[way] = float(returns.mean())
        print(way, code.summary(returns, rng), flush=True)
        for i, (total, length) in enumerate(zip(returns, decisions)):
            rows.append(
                {
                    "actions": way,
                    "seed": 100_000 + i,
                    "return": int(total),
                    "decisions": int(length),
                }
            )
    write_table("evaluation", rows, provenance(environment="ALE/Pong-v5"))
    facts = json.loads((DATA / "agent.json").read_text(encoding="utf-8"))
    facts["mean return of 100 games"] = result
    write_facts("agent", facts)


class InTurns(Executor):
    """Computes at once: play and learn take turns."""

    def submit(self, function, /, *args, **kwargs):
        """Return a Future that is done."""
        future = Future()
        future.set_result(function(*args, **kwargs))
        return future


def variants(code):
    """Return the rungs of the ladder: name, functions to replace, settings."""
    np = code.np
    final_encode, final_forward = code.encode, code.forward
    final_backward, final_learn = code.backward, code.learn
    final_initialize = code.initialize_model

    def two_actions(rng):
        return final_initialize(rng, stay_bias=NEVER)

    def difference(scene):
        appeared = scene.current & ~scene.previous
        gone = scene.previous & ~scene.current
        return final_encode(scene._replace(previous=gone, current=appeared))

    def forward(inputs, model):
        hidden = np.maximum(inputs[0] @ model["W1"], 0)
        outputs = 2 * (hidden @ model["W2"] + model["b2"])
        return outputs[:, :-1], outputs[:, -1], hidden

    def backward(inputs, hidden, logit_gradients, value_gradients, model):
        outputs = 2 * np.column_stack([logit_gradients, value_gradients])
        back = (outputs @ model["W2"].T) * (hidden > 0)
        return {
            "W1": inputs[0].T.tocsr() @ back,
            "W2": hidden.T @ outputs,
            "b2": outputs.sum(axis=0),
        }

    def learn_first(agent, batches, pool, coefficients):
        *_, last = final_learn(agent, batches, InTurns(), coefficients)
        yield last

    now = {
        "initialize_model": two_actions,
        "encode": difference,
        "forward": forward,
        "backward": backward,
        "learn": learn_first,
    }
    plain = {
        "gamma": 0.99,
        "gae_lambda": 1.0,
        "value_coef": 0.0,
        "epochs": 1,
        "n_minibatches": 1,
    }
    rungs = []

    def add(name, functions, settings):
        now.update(functions)
        plain.update(settings)
        rungs.append((name, dict(now), dict(plain)))

    mirror = {"forward": final_forward, "backward": final_backward}
    add("32 games at once", {}, {})
    add("both frames", {"encode": final_encode}, {})
    add("values and GAE", {}, {"gae_lambda": 0.98, "value_coef": 0.5})
    add("PPO: 4 epochs", {}, {"epochs": 4, "n_minibatches": 4})
    add("mirror image", mirror, {})
    add("no discount", {}, {"gamma": 1.0})
    add("third action: stay", {"initialize_model": final_initialize}, {})
    add("play while learning", {"learn": final_learn}, {})
    return rungs


def plateau_settings():
    """Return the settings of the trainings without the action "stay"."""
    settings = notebook_value(SOURCE, "settings")
    return settings | {"decisions": PLATEAU_DECISIONS}


def train_without_stay(seed):
    """Return the rows of a training in which the agent cannot stay."""
    code, settings = notebook_functions(SOURCE), plateau_settings()
    model = code.initialize_model(
        code.np.random.default_rng(seed), stay_bias=NEVER
    )
    games = code.make_games(notebook_value(SOURCE, "N_GAMES"), 1)
    _, history = code.train(games, code.new_agent(model), seed, settings)
    code.close(games)
    return table(seed, history)


def plateau():
    """Record trainings without the action "stay", one per core.

    Their seconds are those of a computer that does several things at once.
    """
    with ProcessPoolExecutor(
        os.cpu_count(), mp_context=get_context("spawn")
    ) as pool:
        results = list(pool.map(train_without_stay, PLATEAU_SEEDS))
    facts = provenance(
        seeds=PLATEAU_SEEDS,
        games=notebook_value(SOURCE, "N_GAMES"),
        settings=plateau_settings(),
    )
    write_table("plateau", [row for rows in results for row in rows], facts)


def strokes_of(seed):
    """Return how an agent plays at the age at which seeds differ most.

    Parameters
    ----------
    seed : int
        Of its training.

    Returns
    -------
    list of dict
        For both players and each vertical speed of the ball: how many came
        to the player, and how many of them it missed.
    """
    code, inside = notebook_functions(SOURCE), notebook_functions(INSIDE)
    model = code.initialize_model(code.np.random.default_rng(seed))
    games = code.make_games(notebook_value(SOURCE, "N_GAMES"))
    rollouts = code.training(
        games,
        code.new_run(code.new_agent(model), seed),
        seed,
        early_settings(),
    )
    for run, row in rollouts:
        agent = run.agent
        if row["decisions"] >= STROKES_DECISIONS:
            break
    rollouts.close()
    code.close(games)
    seeds = range(FIRST_SEED, FIRST_SEED + STROKES_GAMES)
    watched = inside.watch(agent.model, list(seeds))
    total = sum(float(game.rewards.sum()) for game in watched)
    balls, missed = Counter(), Counter()
    for game in watched:
        for ball in inside.arrivals(game.ram):
            kind = (ball.player, abs(ball.speed))
            balls[kind] += 1
            missed[kind] += ball.missed
    return [
        {
            "seed": seed,
            "mean_return": round(total / STROKES_GAMES, 2),
            "player": player,
            "speed": speed,
            "balls": balls[player, speed],
            "missed": missed[player, speed],
        }
        for player, speed in sorted(balls)
    ]


def strokes():
    """Record which balls the agents of all seeds play, and which they miss."""
    parts = share_out(strokes_of, [(seed,) for seed in SEEDS])
    for rows in parts:
        print(rows[0]["seed"], rows[0]["mean_return"], flush=True)
    facts = provenance(
        environment="ALE/Pong-v5",
        actions="greedy",
        seeds=SEEDS,
        decisions=STROKES_DECISIONS,
        games=STROKES_GAMES,
        settings=early_settings(),
    )
    write_table("strokes", [row for rows in parts for row in rows], facts)


def first_chapter(seed):
    """Yield the rows of a training with the first chapter's loop.

    Its batches hold 10 games, as in Karpathy's script.
    """
    code = notebook_functions(DATA.parent / "pong-from-pixels.md")
    np, env = code.np, code.make_pong()
    rng = np.random.default_rng(seed)
    model = code.initialize_model(6400, 200, rng)
    zeros = {name: np.zeros_like(w) for name, w in model.items()}
    total, cache, returns, decisions = zeros, zeros, [], 0
    while True:
        episode = code.play_episode(env, model, rng, None if returns else seed)
        gradient = code.episode_gradient(episode, model, 0.99)
        total = {name: total[name] + gradient[name] for name in zeros}
        returns.append(episode.rewards.sum())
        decisions += len(episode.rewards)
        yield {
            "decisions": decisions,
            "mean_return": float(np.mean(returns[-50:])),
        }
        if len(returns) % 10 == 0:
            model, cache = code.rmsprop_step(model, total, cache, 1e-4, 0.99)
            total = zeros


def this_chapter(rung, seed, n_groups):
    """Yield the rows of a training with the first rungs of the ladder."""
    code = notebook_functions(SOURCE)
    _, functions, changes = variants(code)[rung]
    code.training.__globals__.update(functions)
    settings = early_settings() | changes
    model = functions["initialize_model"](code.np.random.default_rng(seed))
    run = code.new_run(code.new_agent(model), seed)
    games = code.make_games(notebook_value(SOURCE, "N_GAMES"), n_groups)
    for _, row in code.training(games, run, seed, settings):
        yield row
    code.close(games)


def history_until(rows, n_decisions, max_seconds):
    """Return the rows until there are enough, with "seconds"."""
    history, begin = [], time.perf_counter()
    for row in rows:
        history.append(row | {"seconds": time.perf_counter() - begin})
        if row["decisions"] >= n_decisions or (
            history[-1]["seconds"] >= max_seconds
        ):
            break
    return history


def climb(rung, seed, n_groups, n_decisions, max_seconds=float("inf")):
    """Return the history of a training.

    Parameters
    ----------
    rung : int
        -1 for the first chapter's loop, or the number of the last rung of the
        ladder that is taken.
    seed, n_groups, n_decisions : int
        See `make_games`, and where to stop.
    max_seconds : float

    Returns
    -------
    list of dict
    """
    rows = (
        first_chapter(seed) if rung < 0 else this_chapter(rung, seed, n_groups)
    )
    return history_until(rows, n_decisions, max_seconds)


def speed_of(history):
    """Return the decisions per second of a training, without its start.

    The first row has seen the emulators start, which takes seconds.
    """
    first, last = history[0], history[-1]
    decisions = last["decisions"] - first["decisions"]
    return decisions / (last["seconds"] - first["seconds"])


def rung_names():
    """Return the rungs of the ladder: number, and name."""
    names = {-1: "the first chapter"}
    for rung, (name, *_) in enumerate(variants(notebook_functions(SOURCE))):
        names[rung] = name
    return names


def ladder_rows(rung, seed):
    """Return rows of a training on a rung, about every 15,000 decisions."""
    rows, due = [], 0
    for row in climb(rung, seed, 1, LADDER_DECISIONS):
        if row["decisions"] >= due:
            due = row["decisions"] + 15_000
            rows.append(
                {
                    "rung": rung_names()[rung],
                    "seed": seed,
                    "decisions": row["decisions"],
                    "mean_return": round(row["mean_return"], 2),
                }
            )
    return rows


def ladder():
    """Record how each idea of the chapter learns, one training per core.

    How they learn does not depend on how fast they are: `ladder_speed` tells
    that, and what a rung reaches in a given time follows from both.
    """
    jobs = [(rung, seed) for rung in rung_names() for seed in LADDER_SEEDS]
    rows = []
    for part in share_out(ladder_rows, jobs):
        rows += part
        print(part[-1], flush=True)
    facts = provenance(seeds=LADDER_SEEDS, settings=early_settings())
    write_table("ladder", rows, facts)


def ladder_speed():
    """Record how fast each rung is, with the computer for itself.

    In several rounds, because computers are now faster and now slower.
    """
    names, speeds, rows = rung_names(), {}, []
    for _ in range(LADDER_ROUNDS):
        for rung in names:
            history = climb(rung, 1, 2, float("inf"), 15)
            speeds.setdefault(rung, []).append(speed_of(history))
    for rung, name in names.items():
        speed = round(statistics.median(speeds[rung]))
        rows.append({"rung": name, "decisions_per_second": speed})
        print(rows[-1], flush=True)
    write_table("ladder-speed", rows, provenance(rounds=LADDER_ROUNDS))


def sb3(seconds, seed):
    """Return decisions, time and return of Stable-Baselines3's PPO.

    The settings are those of its RL Zoo for Atari games.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    class Stop(BaseCallback):
        def _on_step(self):
            return time.perf_counter() - start < seconds

    envs = make_atari_env("ALE/Pong-v5", n_envs=8, seed=seed)
    model = PPO(
        "CnnPolicy",
        VecFrameStack(envs, n_stack=4),
        n_steps=128,
        n_epochs=4,
        batch_size=256,
        learning_rate=lambda remaining: 2.5e-4 * remaining,
        clip_range=lambda remaining: 0.1 * remaining,
        vf_coef=0.5,
        ent_coef=0.01,
        stats_window_size=50,
        seed=seed,
        device="cpu",
    )
    start = time.perf_counter()
    model.learn(10_000_000, callback=Stop())
    elapsed = time.perf_counter() - start
    returns = [game["r"] for game in model.ep_info_buffer]
    return model.num_timesteps, elapsed, sum(returns) / len(returns)


def ours(seconds, seed):
    """Return decisions, time and return of the chapter's training.

    If this computer recorded the reference runs today, the one with this seed
    is not trained again.
    """
    facts = json.loads(
        (DATA / "reference-runs.json").read_text(encoding="utf-8")
    )
    code, now = notebook_functions(SOURCE), provenance()["made with"]
    if all(
        facts["made with"][key] == now[key]
        for key in ("processor", "cores", "date")
    ):
        history = [
            row
            for row in code.read_table(DATA / "reference-runs.csv")
            if row["seed"] == seed and row["seconds"] <= seconds
        ]
    else:
        settings = notebook_value(SOURCE, "settings")
        _, history = train(code, settings, seed, seconds)
    last = history[-1]
    return int(last["decisions"]), last["seconds"], last["mean_return"]


def first_chapter_for(seconds, seed):
    """Return decisions, time and return of the first chapter's loop."""
    last = history_until(first_chapter(seed), float("inf"), seconds)[-1]
    return last["decisions"], last["seconds"], last["mean_return"]


def comparison():
    """Record three agents after the same time on this machine."""
    rows = []
    contenders = {
        "this chapter": ours,
        "Stable-Baselines3 PPO": sb3,
        "the first chapter": first_chapter_for,
    }
    for name, contender in contenders.items():
        decisions, seconds, mean_return = contender(60 * MINUTES, 1)
        rows.append(
            {
                "agent": name,
                "minutes": round(seconds / 60, 1),
                "decisions": decisions,
                "decisions_per_second": round(decisions / seconds),
                "mean_return": round(mean_return, 2),
            }
        )
        print(rows[-1], flush=True)
    versions = {
        name: metadata.version(name) for name in ("stable-baselines3", "torch")
    }
    write_table("comparison", rows, provenance(seed=1, **versions))


def speed():
    """Print the speed of training over that of the emulator alone."""
    code, ratios = notebook_functions(SOURCE), []
    settings = notebook_value(SOURCE, "settings")
    for seed in range(5):
        games = code.make_games(notebook_value(SOURCE, "N_GAMES"))
        alone = code.random_play_speed(games, 400, seed)
        code.close(games)
        _, history = train(code, settings, seed, 20)
        training = speed_of(history)
        ratios.append(training / alone)
        print(
            f"emulator {alone:,.0f}/s, training {training:,.0f}/s, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio of 5: {code.np.median(ratios):.2f}")


def games():
    """Record what the first page shows: a game before training, and one after.

    Seed 7 for both, as in the chapter. The picture that shared links show is
    made from the second game.
    """
    code, facts = notebook_functions(SOURCE), provenance()
    before = code.initialize_model(code.np.random.default_rng(1))
    after = code.load_model(DATA / "agent.safetensors")
    for name, model, rng in (
        ("before", before, code.np.random.default_rng(7)),
        ("after", after, None),
    ):
        with tempfile.TemporaryDirectory() as folder:
            total, path = code.record_game(
                model, f"{folder}/video", name, 7, rng
            )
            write(
                f"{name}.mp4", lambda target, path=path: squeeze(path, target)
            )
            n_pictures, seconds = count_frames_and_secs(path)
            facts[name] = {"return": float(total), "seconds": seconds}
            print(name, facts[name], flush=True)
            if name == "after":
                court = picture(path, n_pictures - 60)
    write("share.png", lambda target: draw_share(court, target))
    write_facts("games", facts)


def squeeze(path, target):
    """Compress a recording for the web: small, and begins to play at once."""
    options = (
        "-an -c:v libx264 -preset veryslow -crf 30 -tune animation"
        " -pix_fmt yuv420p -g 600 -movflags +faststart"
    )
    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", path]
    subprocess.run([*command, *options.split(), str(target)], check=True)


def picture(path, number):
    """Return one picture of a recording, a PIL.Image.Image."""
    reader = read_frames(path)
    width, height = next(reader)["size"]
    frame = next(itertools.islice(reader, number, None))
    reader.close()
    return Image.frombytes("RGB", (width, height), frame)


def draw_share(court, target):
    """Draw the picture that shared links show, 1200 by 630 pixels."""
    figure = Figure(figsize=(12, 6.3), facecolor="#1b1b1b")
    game = figure.add_axes((0.03, 0.05, 0.40, 0.90))
    game.imshow(court, interpolation="nearest")
    game.set_axis_off()
    for y, size, text in (
        (0.72, 54, "Pong from pixels"),
        (
            0.50,
            27,
            "Build an agent that learns to win\nby looking at the screen.",
        ),
        (0.24, 27, "From scratch, in NumPy,\nwithout a GPU."),
    ):
        figure.text(0.44, y, text, size=size, color="white", linespacing=1.5)
    figure.savefig(target, dpi=100)


def share_out(function, jobs):
    """Return what a function makes of each job, computed on all cores.

    Parameters
    ----------
    function : callable
        Takes a job as its arguments. It must not be a closure.
    jobs : list of tuple

    Returns
    -------
    list
        In the order of the jobs.
    """
    context = get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        return list(pool.map(function, *zip(*jobs)))


def seeds_of(job, n_jobs, n_games):
    """Return the seeds of one of several jobs that share some games."""
    return [FIRST_SEED + i for i in range(job, n_games, n_jobs)]


def measure_games(seeds, without, settings):
    """Return rows with the results of greedy games of the shipped agent."""
    code = notebook_functions(INSIDE)
    model = code.load_model(DATA / "agent.safetensors")
    returns, decisions = code.measure(model, seeds, without, **settings)
    return [
        {"seed": seed, "return": int(total), "decisions": int(length)}
        for seed, total, length in zip(seeds, returns, decisions)
    ]


def measure_kinds(key, kinds, n_games):
    """Return the rows of games of several kinds, and print their means.

    Parameters
    ----------
    key : str
        The column that tells the kinds apart.
    kinds : dict of str to (str, dict)
        What the network does not see, and the settings of the game.
    n_games : int
        Of each kind.

    Returns
    -------
    list of dict
    """
    n_jobs = os.cpu_count()
    jobs = [
        (seeds_of(job, n_jobs, n_games), *kind)
        for kind in kinds.values()
        for job in range(n_jobs)
    ]
    parts, rows = iter(share_out(measure_games, jobs)), []
    for name in kinds:
        games = [row for _ in range(n_jobs) for row in next(parts)]
        games.sort(key=lambda row: row["seed"])
        mean = sum(row["return"] for row in games) / len(games)
        print(f"{name}: {mean:+.2f} in {len(games)} games", flush=True)
        rows += [{key: name, **row} for row in games]
    return rows


def erasing():
    """Record what becomes of the shipped agent if it does not see a part."""
    names = notebook_value(INSIDE, "ERASED")
    kinds = {name: (name, {}) for name in names}
    rows = measure_kinds("erased", kinds, ERASING_GAMES)
    facts = provenance(environment="ALE/Pong-v5", actions="greedy")
    write_table("erasing", rows, facts)


def variants_of_the_game():
    """Record how the shipped agent does in other games than its own."""
    settings = notebook_value(INSIDE, "VARIANTS")
    kinds = {name: ("nothing", values) for name, values in settings.items()}
    rows = measure_kinds("variant", kinds, VARIANT_GAMES)
    facts = provenance(
        environment="ALE/Pong-v5", actions="greedy", variants=settings
    )
    write_table("variants", rows, facts)


def watch_arrivals(seeds):
    """Return rows with all balls that came to a paddle in some games."""
    code = notebook_functions(INSIDE)
    model, rows = code.load_model(DATA / "agent.safetensors"), []
    for some in (seeds[i : i + 10] for i in range(0, len(seeds), 10)):
        for seed, game in zip(some, code.watch(model, some)):
            rows += code.arrival_rows(seed, game.ram)
    return rows


def points():
    """Record where the shipped agent wins and loses its points."""
    n_jobs = os.cpu_count()
    jobs = [(seeds_of(job, n_jobs, POINTS_GAMES),) for job in range(n_jobs)]
    rows = [row for part in share_out(watch_arrivals, jobs) for row in part]
    rows.sort(key=lambda row: row["seed"])  # within a game, as it was played
    for player in ("agent", "opponent"):
        balls = [row["missed"] for row in rows if row["player"] == player]
        print(f"the {player} missed {sum(balls)} of {len(balls)} balls")
    facts = provenance(
        environment="ALE/Pong-v5", actions="greedy", games=POINTS_GAMES
    )
    write_table("points", rows, facts)


def scale_out_training(
    code, n_players, seed, max_staleness=0, max_seconds=float("inf")
):
    """Return the rows of a training with or without Ray.

    Parameters
    ----------
    code : types.SimpleNamespace
    n_players : int
        0 for a single process.
    seed, max_staleness : int
    max_seconds : float

    Returns
    -------
    list of dict
    """
    n_games = notebook_value(SCALE_OUT, "N_GAMES")
    settings = notebook_value(SCALE_OUT, "settings")
    settings["max_staleness"] = max_staleness
    model = code.initialize_model(code.np.random.default_rng(seed))
    run = code.new_run(code.new_agent(model), seed)
    if n_players == 0:
        games = code.make_games(n_games)
        batches = code.training(games, run, seed, settings)
    else:
        players = code.start_players(n_players, n_games, seed, settings)
        batches = code.training_on_ray(players, run, settings, n_players)
    rows, begin = [], None
    for _, row in batches:
        now = time.perf_counter()
        begin = begin or now
        rows.append(row | {"seed": seed, "seconds": now - begin})
        if (
            row["decisions"] >= SCALE_OUT_DECISIONS
            or rows[-1]["seconds"] >= max_seconds
        ):
            break
    batches.close()
    if n_players == 0:
        code.close(games)
    else:
        for player in players:
            code.ray.kill(player)
    return rows


def scale_out():
    """Record trainings with and without Ray, and what they move.

    25 minutes on two cores, which should have nothing else to do. The kinds
    take turns, so that a computer that gets slower does so for all.
    """
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_agent_register_timeout_ms": "100000",
    }.items():
        os.environ.setdefault(name, value)
    code = notebook_functions(SCALE_OUT)
    median = code.np.median
    settings = notebook_value(SCALE_OUT, "settings")
    one = {"Ray, 1 player": {"n_players": 1}}
    kinds = {
        "one process": {"n_players": 0},
        "Ray, 2 players": {"n_players": 2},
        "Ray, 2 players ahead": {"n_players": 2, "max_staleness": 1},
    }
    speeds, curves = {name: [] for name in kinds | one}, []
    with code.ray_running():
        for seed in SCALE_OUT_SEEDS:
            for name, how in kinds.items():
                rows = scale_out_training(code, seed=seed, **how)
                speeds[name].append(code.speed(rows))
                print(name, seed, f"{speeds[name][-1]:,.0f}/s", flush=True)
                curves += [
                    {"training": name, **row} for row in table(seed, rows)
                ]
        for name, how in one.items():
            how["max_seconds"] = SCALE_OUT_SECONDS
            rows = scale_out_training(code, seed=1, **how)
            speeds[name].append(code.speed(rows))
        plain = code.measure_episodes(2, SCALE_OUT_SECONDS, 1)
    per_game = plain["decisions"] / plain["episodes"]
    experience, _ = code.play_alone(16, 1, settings)
    packed = code.size(code.pack(experience)) / experience.actions.size
    speeds["one game per task"] = [plain["decisions"] / plain["seconds"]]
    moved = dict.fromkeys(speeds, packed)
    moved |= {
        "one process": 0,
        "one game per task": plain["bytes"] / per_game,
    }
    cores = 2
    rows = [
        {
            "training": name,
            "decisions_per_second": round(float(median(some)), 1),
            "games_per_second_and_core": round(
                float(median(some)) / per_game / cores, 4
            ),
            "bytes_per_decision": round(moved[name], 1),
        }
        for name, some in speeds.items()
    ]
    for row in rows:
        print(row, flush=True)
    facts = provenance(
        seeds=SCALE_OUT_SEEDS,
        cores_counted=cores,
        decisions_per_game=round(per_game),
        ray=metadata.version("ray"),
        settings=settings,
    )
    write_table("scale-out-curves", curves, facts)
    write_table("scale-out", rows, facts)
    (DATA / "scale-out-curves.json").unlink()  # the same facts


def repeated():
    """Copy the functions of "Train to win" to where they are repeated."""

    def definitions(text):
        found = {}
        for cell in re.finditer(
            r"^```\{code-cell\} ipython3\n(?:---\n.*?^---\n)?(.*?)^```$",
            text,
            re.MULTILINE | re.DOTALL,
        ):
            code = re.sub(r"\A(:.*\n)+", "", cell[1])
            lines = code.splitlines(keepends=True)
            for node in ast.parse(code).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    decorators = [d.lineno for d in node.decorator_list]
                    first = min([node.lineno, *decorators])
                    found[node.name] = "".join(
                        lines[first - 1 : node.end_lineno]
                    )
        return found

    theirs = definitions(SOURCE.read_text(encoding="utf-8"))
    for source in (INSIDE, SCALE_OUT):
        text = source.read_text(encoding="utf-8")
        for name, old in definitions(text).items():
            if theirs.get(name, old) != old:
                print(f"{source.name}: {name}")
                text = text.replace(old, theirs[name])
        source.write_text(text, encoding="utf-8")


PARTS = {
    part.__name__: part
    for part in (
        runs,
        agent,
        finish,
        evaluation,
        games,
        plateau,
        strokes,
        ladder,
        ladder_speed,
        comparison,
        speed,
        erasing,
        variants_of_the_game,
        points,
        scale_out,
        repeated,
    )
}

if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in PARTS]
    if unknown or len(sys.argv) < 2:
        sys.exit(f"say which: {' '.join(PARTS)}; got {' '.join(unknown)}")
    for name in sys.argv[1:]:
        print(f"== {name}", flush=True)
        PARTS[name]()
