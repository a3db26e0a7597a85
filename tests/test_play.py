"""The page in Chromium: numbers as NumPy's, games to the end, keys, pointer, bad input.

The page is served under a sub-path; every request to another site is a failure.
"""

import json
import re
import shutil

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe

from conftest import CONTENT, ROOT
from pages import serve
from play_numbers import numbers
from pong.keep_a_training_safe import load_small_model
from pong.play import Court, draw

PLAY = CONTENT / "_extra" / "play"
PAGE = ROOT / "tests" / "play.html"  # the game and the figures, in no theme


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Serve the page with what belongs to it under a sub-path."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(PLAY, folder / "play")
    shutil.copy(PAGE, folder / "play")
    shutil.copy(CONTENT / "images" / "after.mp4", folder / "play")
    with serve(folder, "/book/") as address:
        yield f"{address}play/"


@pytest.fixture
def open_page(browser, site):
    contexts, errors, requests = [], [], []

    def open_page(path="play.html", wait=True, before=None, **options):
        context = browser.new_context(
            **({"viewport": {"width": 1280, "height": 900}} | options)
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        if before:
            before(page)
        page.goto(site + path)
        if wait:
            page.wait_for_selector("[data-pong=play] .pong-court")
        page.requests = requests
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not errors
    assert all(
        url.startswith((site.removesuffix("play/"), "data:", "blob:"))
        for url in requests
    )


def start(page):
    page.get_by_role("button", name="Start").click()
    page.wait_for_function(
        "document.querySelector('[data-pong=play]').pong?.game"
    )


def pong(page, expression):
    return page.evaluate(
        f"(() => {{ const pong = document.querySelector('[data-pong=play]').pong; return {expression} }})()"
    )


@pytest.fixture(scope="module")
def recorded():
    """Return what the page must compute, and the rally of its figure."""
    model = load_small_model(PLAY / "weights/shipped.safetensors")
    rally = re.search(
        r'application/json">(.*?)</script>', PAGE.read_text("utf-8")
    )
    return numbers(model, json.loads(rally[1]))


IMPORTS = """
const [court, agent, game, figures] = await Promise.all(
  ["court", "agent", "game", "figures"].map((name) => import(`./${name}.js`)));
const camel = (name) => name.replace(/_./g, (x) => x[1].toUpperCase());
const make = (fields, row) => Object.fromEntries(fields.map((name, i) => [camel(name), row[i]]));
const on = (picture) => Array.from(picture.keys()).filter((i) => picture[i]);
"""


def run(page, body, data):
    """Run it in the page; as text, a large `data` arrives faster."""
    parse = "const data = JSON.parse(text);"
    body = f"async (text) => {{ {parse} {IMPORTS} {body} }}"
    return page.evaluate(body, json.dumps(data))


def test_network_agrees_with_numpy(open_page, recorded):
    page = open_page()
    found = run(
        page,
        """
      const model = await agent.loadWeights("weights/shipped.safetensors");
      const worst = { logits: 0, value: 0, encoding: 0 }, times = [];
      for (const scene of data.scenes) {
        const picture = (cells) => { const p = new Uint8Array(2560); cells.forEach((i) => (p[i] = 1)); return p; };
        const seen = { previous: picture(scene.previous), current: picture(scene.current), lastAction: scene.last };
        const start = performance.now();
        const thought = agent.forward(seen, model);
        times.push(performance.now() - start);
        thought.logits.forEach((z, k) => (worst.logits = Math.max(worst.logits, Math.abs(z - scene.logits[k]))));
        worst.value = Math.max(worst.value, Math.abs(thought.value - scene.value));
        const drawn = on(court.objects(make(data.fields, scene.court)));
        if (drawn.join() !== scene.current.join()) worst.encoding += 1;
      }
      times.sort((a, b) => a - b);
      return { ...worst, median: times[500], slow: times[990], n: times.length };
    """,
        recorded,
    )
    print(found)
    assert found["n"] == 1000 and found["encoding"] == 0
    assert found["logits"] < 1e-4 and found["value"] < 1e-4
    assert found["median"] <= 3


def test_court_agrees_with_python(open_page, recorded):
    page = open_page()
    differences = run(
        page,
        """
      let wrong = 0, steps = 0, pictures = 0;
      for (const { actions, states, pictures: seen } of data.traces) {
        let now = court.newCourt();
        actions.forEach(([right, left], t) => {
          now = court.step(now, right, left);
          const truth = make(data.fields, states[t]);
          if (Object.keys(truth).some((name) => now[name] !== truth[name])) wrong += 1;
          steps += 1;
          if (t % 9 === 0) {
            if (on(court.objects(now)).join() !== seen[t / 9].join()) wrong += 1;
            pictures += 1;
          }
        });
      }
      data.preprocessed.forEach((cells, i) => {
        const now = make(data.fields, data.traces[2].states[100 + 10 * i]);
        if (on(figures.preprocess(now)).join() !== cells.join()) wrong += 1;
      });
      return { wrong, steps, pictures };
    """,
        recorded,
    )
    print(differences)
    assert differences["wrong"] == 0 and differences["steps"] == 10_000


def test_the_canvas_shows_what_the_emulator_shows(open_page, recorded):
    page = open_page()
    rows = [
        trace["states"][t]
        for trace in recorded["traces"][::2]
        for t in range(0, 2500, 166)
    ]
    pictures = run(
        page,
        """
      const canvas = Object.assign(document.createElement("canvas"), { width: 160, height: 210 });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      return data.rows.map((row) => {
        court.paint(context, make(data.fields, row));
        return Array.from(context.getImageData(0, 0, 160, 210).data).filter((_, i) => i % 4 === 0).join();
      });
    """,
        {"rows": rows, "fields": recorded["fields"]},
    )
    gray = np.zeros(256, int)
    gray[[144, 92, 213, 236]] = 87, 147, 148, 236  # by their red
    for row, picture in zip(rows, pictures):
        shown = gray[np.reshape(picture.split(","), (210, 160)).astype(int)]
        truth = draw(Court(*(np.array([v]) for v in row)))
        # Row 0 has the console's black dash.
        assert np.array_equal(shown[1:], truth[1:])


def test_figures_agree_with_numpy(open_page, recorded):
    page = open_page()
    worst = run(
        page,
        """
      let worst = 0;
      const { rewards, values } = data.rally;
      for (const { gamma, lambda, advantages } of data.gae) {
        figures.gae(rewards, values, gamma, lambda).advantages.forEach((a, t) => (worst = Math.max(worst, Math.abs(a - advantages[t]))));
      }
      for (const [ratio, advantage, loss] of data.clip) worst = Math.max(worst, Math.abs(figures.clipLoss(ratio, advantage) - loss));
      return worst;
    """,
        recorded,
    )
    assert worst < 1e-5


def test_the_agent_keeps_its_strength_in_the_browser(open_page):
    page = open_page()
    results = run(
        page,
        """
      const model = await agent.loadWeights("weights/shipped.safetensors");
      return Array.from({ length: 20 }, (_, seed) => {
        const play = new game.Game(model, game.generator(seed + 1));
        while (!play.over) play.tick(null);
        return play.court.rightScore - play.court.leftScore;
      });
    """,
        None,
    )
    mean = sum(results) / len(results)
    print(mean, results)
    assert abs(mean - 19.1) <= 2 and min(results) >= 0


def test_nothing_loads_before_start(open_page):
    page = open_page()
    page.wait_for_timeout(300)
    assert not any(
        ".safetensors" in url or ".json" in url or ".mp4" in url
        for url in page.requests
    )
    start(page)
    assert [
        url.rsplit("/", 1)[1] for url in page.requests if ".safetensors" in url
    ] == ["shipped.safetensors"]


def test_a_game_ends_at_21_and_starts_again(open_page):
    page = open_page()
    start(page)
    page.get_by_role("button", name="Pause").click()
    # A scripted reader who follows the ball badly, without waiting for the screen.
    result = pong(
        page,
        """(() => {
      let changes = 0, before = "";
      const status = document.querySelector(".pong-stage .pong-status");
      const press = (type, code) => dispatchEvent(new KeyboardEvent(type, { code }));
      pong.mode = "running";
      for (let t = 0; t < 60000 && !pong.game.over; t++) {
        pong.tick();
        if (status.textContent !== before) { changes += 1; before = status.textContent; }
      }
      return { ...pong.game.court, changes, text: before };
    })()""",
    )
    points = result["leftScore"] + result["rightScore"]
    assert max(result["leftScore"], result["rightScore"]) == 21
    assert (
        points - 1 <= result["changes"] <= points + 2
    )  # one announcement for each point
    assert "The agent wins" in result["text"]
    page.get_by_role("button", name="New game").click()
    page.wait_for_function(
        "document.querySelector('[data-pong=play]').pong.mode === 'running'"
    )
    assert pong(page, "pong.game.court.rightScore") == 0


def left_row(page):
    return pong(page, "pong.game.court.left")


@pytest.mark.parametrize("up, down", [("ArrowUp", "ArrowDown"), ("w", "s")])
def test_keys_move_the_paddle(open_page, up, down):
    page = open_page()
    start(page)
    page.keyboard.down(down)
    page.wait_for_function(
        "document.querySelector('[data-pong=play]').pong.game.court.left > 185",
        timeout=8000,
    )
    page.keyboard.up(down)
    page.keyboard.down(up)
    page.wait_for_function(
        "document.querySelector('[data-pong=play]').pong.game.court.left < 60",
        timeout=8000,
    )
    page.keyboard.up(up)
    assert page.evaluate("scrollY") == 0


def test_pointer_moves_the_paddle(open_page):
    page = open_page()
    start(page)
    box = page.locator(".pong-court").first.bounding_box()
    for share in (0.8, 0.3):
        page.mouse.move(box["x"] + 30, box["y"] + share * box["height"])
        page.wait_for_timeout(900)
        wanted = 210 * share - 34 - 8 + 49
        assert abs(left_row(page) - wanted) <= 4


def test_touch_moves_the_paddle_without_scrolling(open_page):
    page = open_page(
        viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True
    )
    start(page)
    page.wait_for_timeout(300)
    box = page.locator(".pong-court").first.bounding_box()
    assert box["y"] >= 0 and box["y"] + box["height"] <= 640
    before = page.evaluate("scrollY")
    client = page.context.new_cdp_session(page)
    y = box["y"] + 0.25 * box["height"]
    client.send(
        "Input.dispatchTouchEvent",
        {"type": "touchStart", "touchPoints": [{"x": 180, "y": y}]},
    )
    for _ in range(12):
        y += 15
        client.send(
            "Input.dispatchTouchEvent",
            {"type": "touchMove", "touchPoints": [{"x": 180, "y": y}]},
        )
        page.wait_for_timeout(30)
    client.send(
        "Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []}
    )
    page.wait_for_timeout(900)
    wanted = 210 * (y - box["y"]) / box["height"] - 34 - 8 + 49
    assert abs(left_row(page) - wanted) <= 4
    assert page.evaluate("scrollY") == before
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_pause_step_slow_and_ages(open_page):
    page = open_page()
    start(page)
    page.get_by_role("button", name="Pause").click()
    frames = pong(page, "pong.game.frames")
    page.wait_for_timeout(300)
    assert pong(page, "pong.game.frames") == frames
    further = page.get_by_role("button", name="One decision further")
    further.click()
    first = pong(page, "pong.game.frames")
    further.click()
    assert first % 4 == 0 and pong(page, "pong.game.frames") == first + 4
    assert "It chose" in page.locator(".pong-stage .pong-status").inner_text()

    def speed():
        return page.evaluate("""async () => {
          const pong = document.querySelector('[data-pong=play]').pong;
          const frames = pong.game.frames, start = performance.now();
          await new Promise((done) => setTimeout(done, 1500));
          return (pong.game.frames - frames) / (performance.now() - start) * 1000;
        }""")

    page.get_by_role("button", name="Resume").click()
    normal = speed()
    page.get_by_role("button", name="Slow motion").click()
    slow = speed()
    print(f"{normal:.0f} and {slow:.0f} frames a second")
    assert 0.1 * normal <= slow <= 0.5 * normal and normal <= 63
    page.get_by_role("button", name="Forbid").click()
    page.wait_for_timeout(700)
    assert pong(page, "pong.game.thought.probabilities[2]") == 0
    page.get_by_role("button", name="Hide its older frame").click()
    page.wait_for_timeout(700)
    assert pong(page, "pong.game.seen.previous.every((cell) => cell === 0)")
    before = (
        pong(page, "pong.game.model.W1[1000]"),
        pong(page, "pong.game.model.W2[10]"),
    )
    for age in ("untrained", "100k", "400k", "1m"):
        page.get_by_label("How old is it?").select_option(age)
        page.wait_for_function(
            f"[...document.querySelector('[data-pong=play]').pong.models.keys()].includes('{age}')"
        )
        page.wait_for_function(
            "document.querySelector('.pong-stage .pong-status').textContent.includes('Now playing')"
        )
    assert pong(page, "pong.game.model.W2[10]") != before[1]
    page.get_by_role("button", name="Let the console").click()
    page.wait_for_timeout(500)
    assert pong(page, "pong.console")


def test_a_frame_leaves_time_for_others(open_page):
    page = open_page()
    start(page)
    work = pong(
        page,
        """Math.min(...Array.from({ length: 20 }, () => {
          const start = performance.now();
          for (let t = 0; t < 20; t++) { pong.tick(); pong.render(); }
          return (performance.now() - start) / 20;
        }))""",
    )
    assert work < 3  # of 17 ms


def test_hidden_tab_pauses(open_page):
    page = open_page()
    start(page)
    page.evaluate("""() => {
      Object.defineProperty(document, "hidden", { value: true, configurable: true });
      document.dispatchEvent(new Event("visibilitychange"));
    }""")
    assert pong(page, "pong.mode") == "paused"


def test_reduced_motion_starts_paused(open_page):
    page = open_page(reduced_motion="reduce")
    start(page)
    page.wait_for_timeout(400)
    assert (
        pong(page, "pong.mode") == "paused"
        and pong(page, "pong.game.frames") == 0
    )
    page.get_by_role("button", name="Resume").click()
    page.wait_for_timeout(300)
    assert pong(page, "pong.game.frames") > 0


@pytest.mark.parametrize("mode", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_axe(open_page, mode, width):
    page = open_page(viewport={"width": width, "height": 800})
    page.evaluate(f"document.documentElement.dataset.theme = '{mode}'")
    for y in range(0, 6000, 400):
        page.evaluate(f"scrollTo(0, {y})")
        page.wait_for_timeout(30)
    page.wait_for_function(
        "document.querySelectorAll('.pong-built').length === 5"
    )
    start(page)
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Pause").click()
    results = Axe().run(
        page,
        options={
            "runOnly": [
                "wcag2a",
                "wcag2aa",
                "wcag21a",
                "wcag21aa",
                "wcag22aa",
                "best-practice",
            ]
        },
    )
    assert results.violations_count == 0, results.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def damaged(kind):
    data = (PLAY / "weights/shipped.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    start = (
        8
        + length
        + json.loads(data[8 : 8 + length])["factors"]["data_offsets"][0]
    )
    return {
        "cut off": data[:5000],
        "another shape": data.replace(b"5123", b"5122", 1),
        "no file of weights": b"<!doctype html>" * 10,
        "damaged": data[:start] + b"\xff" * 40 + data[start + 40 :],
        "missing": None,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["cut off", "another shape", "no file of weights", "damaged", "missing"],
)
def test_bad_weights_say_so(open_page, kind):
    def before(page):
        body = damaged(kind)
        page.route(
            "**/shipped.safetensors",
            lambda route: (
                route.fulfill(status=404)
                if body is None
                else route.fulfill(body=body)
            ),
        )

    page = open_page(before=before)
    page.get_by_role("button", name="Start").click()
    reason = page.locator("[data-pong=play] .pong-reason")
    reason.wait_for(state="visible")
    assert kind in reason.inner_text()
    assert page.locator("[data-pong=play] video").is_visible()


def test_no_canvas_and_no_script_leave_the_video(open_page):
    script = "HTMLCanvasElement.prototype.getContext = () => null"
    page = open_page(
        before=lambda page: page.add_init_script(script), wait=False
    )
    page.locator(
        "[data-pong=play] .pong-reason", has_text="no canvas"
    ).wait_for()
    assert page.locator("[data-pong=play] video").is_visible()
    page = open_page(java_script_enabled=False, wait=False)
    assert "needs JavaScript" in page.locator("[data-pong=play]").inner_text()
    assert page.locator("[data-pong=play] video").is_visible()


def test_figures_answer(open_page):
    page = open_page()
    for name in ("frames", "gae", "clip", "agent"):
        page.locator(f"[data-figure={name}]").scroll_into_view_if_needed()
        page.locator(f"[data-figure={name}] .pong-built").wait_for()
    note = page.locator("[data-figure=gae] .pong-status")
    before = note.inner_text()
    page.get_by_label("λ").fill("0.5")
    assert note.inner_text() != before
    page.get_by_label("ρ").fill("1.4")
    assert (
        "flat" in page.locator("[data-figure=clip] .pong-status").inner_text()
    )
    page.get_by_role("button", name="Load the agent").click()
    status = page.locator("[data-figure=agent] .pong-status")
    page.wait_for_function(
        "document.querySelector('[data-figure=agent] .pong-status').textContent.includes('Most probable')"
    )
    canvas = page.locator("[data-figure=agent] .pong-court")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    row = page.locator("[data-figure=agent]").get_by_label(
        "Right paddle, row", exact=True
    )
    x, y = (
        box["x"] + 142 / 160 * box["width"],
        box["y"] + box["height"] * (34 + 88) / 210,
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 60, steps=4)
    page.mouse.up()
    assert int(row.input_value()) < 60
    assert "Most probable" in status.inner_text()


def test_twenty_minutes_leave_no_memory_behind(open_page):
    page = open_page()
    start(page)
    page.get_by_role("button", name="Pause").click()
    client = page.context.new_cdp_session(page)

    def heap():
        client.send("HeapProfiler.collectGarbage")
        return page.evaluate(
            "performance.memory.usedJSHeapSize"
        ) / 1e6, page.evaluate("document.querySelectorAll('*').length")

    play = """(() => { for (let t = 0; t < 12000; t++) {
        if (pong.game.over) pong.game.restart();
        pong.mode = "running"; pong.tick(); if (t % 40 === 0) pong.render(); } pong.mode = "paused"; return pong.history.up.length; })()"""
    pong(page, play)
    before = heap()
    for _ in range(6):  # 72,000 frames are 20 minutes
        assert pong(page, play) <= 150
    after = heap()
    print(before, after)
    assert after[0] - before[0] < 1.5 and after[1] == before[1]


def test_size_of_the_scripts():
    size = sum(path.stat().st_size for path in PLAY.glob("*.js"))
    print(size)
    assert size <= 60_000
    assert all(
        path.stat().st_size <= 1_100_000
        for path in (PLAY / "weights").glob("*.safetensors")
    )
