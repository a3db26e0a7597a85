// Loads the game or a figure when the reader comes near it, and nothing before.
const parts = { play: "./play.js", figure: "./figures.js" };
const watcher = "IntersectionObserver" in window && new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    watcher.unobserve(target);
    (window.requestIdleCallback ?? setTimeout)(() => load(target));
  }
}, { rootMargin: "300px" });

async function load(root) {
  const { mount } = await import(parts[root.dataset.pong]);
  mount(root);
}

for (const root of document.querySelectorAll("[data-pong]")) {
  if (watcher) watcher.observe(root);
  else load(root);
}
