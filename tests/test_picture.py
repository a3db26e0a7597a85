"""The picture of README.md and of the front page shows what the chapter computes."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from pong import pong_from_pixels as chapter


@pytest.mark.mpl_image_compare(
    baseline_dir="../content/images",
    filename="what-the-agent-sees.png",
    style="default",
    savefig_kwargs={"dpi": 160},
    tolerance=8,  # fonts are drawn a little differently from system to system
)
def test_picture_shows_what_the_chapter_computes():
    env = chapter.make_pong()
    env.reset(seed=42)
    rng = np.random.default_rng(12288743)
    frames = [env.step(int(rng.integers(2, 4)))[0] for _ in range(88)][-2:]
    env.close()
    before, now = (chapter.frame_preprocessing(frame) for frame in frames)
    change = chapter.update_input(now, before).reshape(80, 80)

    figure = Figure(figsize=(7, 2.65), layout="constrained")
    titles = ("What you see", "What is left", "What has changed")
    court = frames[-1][35:195]
    for ax, title, picture in zip(figure.subplots(1, 3), titles, (court, now, change)):
        ax.imshow(picture, cmap="gray", interpolation="nearest")
        ax.set_title(title)
        ax.set_axis_off()
    return figure
