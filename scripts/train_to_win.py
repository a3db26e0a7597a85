"""Record what "Train to win" shows.

    python scripts/train_to_win.py runs plain
    python scripts/train_to_win.py agent finish evaluation games speed

Each command writes tables or weights to content/pong/data/; `games` writes
what the first page shows to content/images/; `speed` only prints. `runs` takes
an hour, as does `plain` (the same without a critic). So do `agent` and `finish`
together. All four keep checkpoints in _build, and go on from them unless the code
has changed.
"""

import itertools
import os
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy

import numpy as np
import pandas as pd
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe, read_frames
from matplotlib.figure import Figure
from PIL import Image

import recording
from pong.keep_a_training_safe import (
    fingerprint,
    load_model,
    open_checkpoints,
    save_model,
)
from pong.many_games_at_once import (
    close,
    initialize_model,
    make_games,
    random_play_speed,
    reset,
)
from pong.ppo_in_numpy import new_agent
from pong.set_up import facts
from pong.train_to_win import (
    N_GAMES,
    PLAIN,
    SETTINGS,
    evaluate,
    new_run,
    record_game,
    summary,
    train,
)

SEEDS = (1, 2, 3, 4, 5)
# The shipped agent was trained before there was a critic.
AGENT_SEED, AGENT = 2, PLAIN | {"decisions": 4_000_000}
FINISH_SEED = 11
FINISH = PLAIN | {
    "decisions": 3_000_000,
    "learning_rate": 1e-3,
    "entropy_coef": 0.002,
}
CRITIC_GAMES, FIRST_CRITIC_GAME = 30, 400_000
IMAGES = recording.ROOT / "content/images"
WEIGHTS = recording.DATA / "agent.safetensors"


def table(seed, history, every=50_000, levels=(0, 10, 15, 18)):
    """Return a row every so many decisions, and when levels are reached."""
    rows, due = [], 0
    for row in history:
        reached = levels and row["mean_return"] >= levels[0]
        levels = levels[1:] if reached else levels
        if reached or row["decisions"] >= due or row is history[-1]:
            if row["decisions"] >= due:
                due = row["decisions"] + every
            names = ("decisions", "games")
            rows.append({"seed": seed, **{name: row[name] for name in names}})
            rows[-1]["seconds"] = round(row["seconds"], 1)
            rows[-1]["mean_return"] = round(row["mean_return"], 2)
    return rows


def train_with(name, seed, settings, critic=True, model=None):
    """Return a training's weights and history; _build keeps its checkpoints."""
    model = model or random_model(seed)
    start = new_run(new_agent(model), seed, critic)
    made_with = settings | {"seed": seed, "games": N_GAMES}
    made_with["start"] = fingerprint(model, "")
    folder = kept(name) / recording.CODE[:16] / str(seed)
    games = make_games(N_GAMES)
    with open_checkpoints(folder, start, made_with) as (run, history, save):
        run, history = train(games, run, seed, settings, np.inf, history, save)
    close(games)
    return run.agent.model, history


def kept(name):
    """Return the folder with the checkpoints of what is recorded."""
    return recording.BUILD / f"{name}-checkpoints"


def forget(name):
    """Remove these checkpoints: the next time, it begins anew."""
    shutil.rmtree(kept(name), ignore_errors=True)


def random_model(seed):
    """Return the weights with which a training with this seed begins."""
    return initialize_model(np.random.default_rng(seed))


def gauges_of(seed, history, decisions=800_000, window=3):
    """Return the gauges of a training's beginning, averaged."""
    others = ["games", "seconds", "won", "lost"]
    table = pd.DataFrame(history).drop(columns=others)
    table.insert(0, "seed", seed)
    table = table[table["decisions"] <= decisions]
    means = table.groupby(table.index // window).mean()
    return means.astype({"seed": int, "decisions": int})


def record_runs(name, settings, critic):
    """Record a training with each of the reference seeds; return what it gave."""
    rows, gauges, agents, seconds = [], [], {}, 0.0
    made = {"seeds": SEEDS, "games": N_GAMES, "settings": settings}
    for seed in SEEDS:
        agents[seed], history = train_with(name, seed, settings, critic)
        rows += table(seed, history)
        gauges.append(gauges_of(seed, history).round(6))
        seconds += history[-1]["seconds"]  # with those before an interruption
        print(rows[-1], flush=True)
    recording.save_table(name, rows, **made, hours=recording.hours(seconds))
    return agents, pd.concat(gauges), made


def runs():
    """Record the trainings with which readers compare theirs, and new games."""
    agents, gauges, made = record_runs("reference-runs", SETTINGS, critic=True)
    recording.save_table("gauges", gauges, **made)
    rows = []
    for seed, model in agents.items():
        for way, rng in (
            ("sampled", np.random.default_rng(0)),
            ("greedy", None),
        ):
            results = evaluate(model, CRITIC_GAMES, rng, FIRST_CRITIC_GAME)
            kind = {"agent": seed, "actions": way}
            rows += game_rows(kind, *results, FIRST_CRITIC_GAME)
            print(seed, way, results[0].mean(), flush=True)
    recording.save_table("critic-games", rows, environment="ALE/Pong-v5")
    forget("reference-runs")


def plain():
    """Record the same trainings without a critic."""
    record_runs("plain-runs", PLAIN, critic=False)
    forget("plain-runs")


def save_agent(model, **known):
    """Write the shipped weights, and beside them the same facts."""
    known = {"made with": recording.made_with()} | known
    save_model(WEIGHTS, model, known)
    recording.save_facts("agent", **known)


def agent():
    """Train the agent that is shipped: longer than a reader would wait."""
    model, history = train_with("agent", AGENT_SEED, AGENT, critic=False)
    mean = {str(AGENT_SEED): round(history[-1]["mean_return"], 2)}
    name = "mean return of the last 50 training games, by seed"
    more = {"seed": AGENT_SEED, "games": N_GAMES, "settings": AGENT}
    more["hours"] = recording.hours(history[-1]["seconds"])
    save_agent(model, **more, **{name: mean})
    forget("agent")


def finish():
    """Train the agent that `agent` has written further, in smaller steps."""
    known = facts("agent")
    if "finished with" in known:
        sys.exit("this agent is finished; `agent` trains one from the start")
    model, history = train_with(
        "agent-finish", FINISH_SEED, FINISH, False, load_model(WEIGHTS)
    )
    mean = round(history[-1]["mean_return"], 2)
    known["finished with"] = {
        "made with": recording.made_with(),
        "seed": FINISH_SEED,
        "games": N_GAMES,
        "settings": FINISH,
        "hours": recording.hours(history[-1]["seconds"]),
        "mean return of the last 50 training games": mean,
    }
    save_agent(model, **known)
    forget("agent-finish")


def evaluation():
    """Evaluate the shipped weights."""
    rows, rng, means = [], np.random.default_rng(0), {}
    for way, actions_rng in (("sampled", rng), ("greedy", None)):
        results = evaluate(load_model(WEIGHTS), 100, actions_rng)
        means[way] = float(results[0].mean())
        print(way, summary(results[0], rng), flush=True)
        rows += game_rows({"actions": way}, *results)
    recording.save_table("evaluation", rows, environment="ALE/Pong-v5")
    known = facts("agent") | {"mean return of 100 games": means}
    recording.save_facts("agent", **known)


def game_rows(kind, returns, decisions, first_seed=100_000):
    """Return a row for each game."""
    return [
        kind
        | {"seed": first_seed + i, "return": int(total), "decisions": int(n)}
        for i, (total, n) in enumerate(zip(returns, decisions))
    ]


def speed():
    """Print the speed of training over that of the emulator alone."""
    ratios = []
    for seed in range(5):
        games = make_games(N_GAMES)
        reset(games, seed)
        alone = random_play_speed(games, 400)
        start = new_run(new_agent(random_model(seed)), seed)
        _, history = train(games, start, seed, SETTINGS, max_seconds=20)
        close(games)
        trained = recording.per_second(history)
        ratios.append(trained / alone)
        print(
            f"emulator {alone:,.0f}/s, training {trained:,.0f}/s, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio of 5: {np.median(ratios):.2f}")


def games():
    """Record a game before training and one after, for the first page."""
    shown, n_pictures = {}, 0
    for name, model, rng in (
        ("before", random_model(1), np.random.default_rng(7)),
        ("after", load_model(WEIGHTS), None),
    ):
        with tempfile.TemporaryDirectory() as folder:
            total, path = record_game(model, folder, name, 7, rng)
            n_pictures, seconds = count_frames_and_secs(path)
            shown[name] = {"return": float(total), "seconds": seconds}
            print(name, shown[name], flush=True)
            squeeze(path, IMAGES / f"{name}.mp4")
            court = picture(path, n_pictures - 60)
    draw_share(court, IMAGES / "share.png")
    recording.save_facts("games", **shown)


def squeeze(path, target):
    """Compress a recording for the web: small, and begins to play at once."""
    options = (
        "-an -c:v libx264 -preset veryslow -crf 30 -tune animation"
        " -pix_fmt yuv420p -g 600 -movflags +faststart"
    )
    partial = target.with_name(f".partial-{target.name}")
    command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", path]
    subprocess.run([*command, *options.split(), str(partial)], check=True)
    os.replace(partial, target)


def picture(path, number):
    """Return one picture of a recording, a PIL.Image.Image."""
    reader = read_frames(path)
    size = next(reader)["size"]
    frame = next(itertools.islice(reader, number, None))
    reader.close()
    return Image.frombytes("RGB", size, frame)


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


COMMANDS = {
    command.__name__: command
    for command in (
        runs,
        plain,
        agent,
        finish,
        evaluation,
        games,
        speed,
    )
}

if __name__ == "__main__":
    recording.main(COMMANDS)
