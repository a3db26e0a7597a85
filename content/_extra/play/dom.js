// A few lines that spare a framework.

// An element: element("p.note", { hidden: true }, "text", child, …).
export function element(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Curves over time in a plot that is 100 wide; `range` is what the plot's height shows.
export function chart(label, names, range, mark) {
  const [low, high] = range;
  const y = (value) => 40 * (1 - (Math.min(Math.max(value, low), high) - low) / (high - low));
  const lines = names.map((name) => svg("polyline", { class: `pong-line pong-${name}` }));
  const zero = svg("line", { class: "pong-zero", x1: 0, x2: 100, y1: y(mark), y2: y(mark) });
  const plot = svg("svg", {
    class: "pong-chart", viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img",
    "aria-label": label,
  }, zero, ...lines);
  const draw = (series, length = series[0].length) => series.forEach((values, k) => {
    const at = (i) => (100 * (length - values.length + i)) / Math.max(length - 1, 1);
    const points = Array.from(values, (v, i) => `${at(i).toFixed(1)},${y(v).toFixed(1)}`);
    lines[k].setAttribute("points", points.join(" "));
  });
  return { plot, draw };
}

// A picture of 32 × 80 cells. With `older`, cells that only that one has are orange.
export function cells(canvas, picture, older = null) {
  const context = canvas.getContext("2d");
  context.fillStyle = "#111";
  context.fillRect(0, 0, 32, 80);
  for (let i = 0; i < 2560; i++) {
    if (!picture[i] && !older?.[i]) continue;
    context.fillStyle = !older || (picture[i] && older[i]) ? "#fff" : picture[i] ? "#56b4e9" : "#e69f00";
    context.fillRect(i & 31, i >> 5, 1, 1);
  }
}

export const cellCanvas = (label) =>
  element("canvas.pong-cells", { width: 32, height: 80, role: "img", "aria-label": label });

// Bars with their numbers for the probabilities of the actions, and for the value.
export function meters() {
  const rows = ["up", "down", "stay"].map((name) => {
    const bar = element("span.pong-fill");
    const number = element("span.pong-number", {}, "–");
    const row = element("div.pong-meter", {}, element("span", {}, `P(${name})`),
      element(`span.pong-track.pong-${name}`, {}, bar), number);
    return { row, bar, number };
  });
  const needle = element("span.pong-needle"), number = element("span.pong-number", {}, "–");
  const value = element("div.pong-meter", {}, element("span", {}, "V"),
    element("span.pong-track", {}, needle), number);
  const box = element("div.pong-meters", {}, ...rows.map(({ row }) => row), value);
  const show = (thought) => {
    thought.probabilities.forEach((p, k) => {
      rows[k].bar.style.transform = `scaleX(${p})`;
      rows[k].number.textContent = p.toFixed(2);
    });
    const place = Math.min(Math.max(thought.value, -1.2), 1.2);
    needle.style.left = `${50 + (50 * place) / 1.2}%`;
    number.textContent = thought.value.toFixed(2).replace("-", "−");
  };
  return { box, show };
}

// The hidden units that push most, up to the right and down to the left.
export function unitList(n = 6) {
  const rows = Array.from({ length: n }, () => {
    const bar = element("span.pong-fill"), name = element("span"), number = element("span.pong-number");
    return { bar, name, number, row: element("li.pong-meter", {}, name, element("span.pong-track.pong-both", {}, bar), number) };
  });
  const show = (push) => {
    const order = Array.from(push.keys()).sort((a, b) => Math.abs(push[b]) - Math.abs(push[a]));
    rows.forEach(({ bar, name, number }, k) => {
      const value = push[order[k]];
      name.textContent = `unit ${order[k]}`;
      bar.style.transform = `scaleX(${Math.max(-1, Math.min(1, value / 4))})`;
      number.textContent = value ? `${Math.abs(value).toFixed(1)} ${value > 0 ? "up" : "down"}` : "0";
    });
  };
  return { box: element("ul.pong-units", {}, ...rows.map(({ row }) => row)), show };
}

export const round = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

// Show what the page brings for readers without JavaScript, with the reason.
export function giveUp(root, reason) {
  root.querySelector(".pong-built")?.remove();
  for (const node of root.querySelectorAll(".pong-fallback")) node.removeAttribute("hidden");
  const sentence = root.querySelector(".pong-reason") ?? root.appendChild(element("p.pong-reason"));
  sentence.setAttribute("role", "status");
  const instead = root.querySelector("video") ? "A recorded game stands in for it." : "Reload the page to try again.";
  sentence.textContent = `The game cannot run here: ${reason}. ${instead}`;
}
