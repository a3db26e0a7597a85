// What the pages do by themselves.

// Formulas: MathJax, which weighs more than a page, comes when a formula is near,
// or when the reader does anything at all.
{
  const mathjax = new URL("mathjax/tex-chtml.js", document.currentScript.src);
  const signs = ["scroll", "pointerdown", "keydown", "beforeprint"];
  const formulas = [...document.querySelectorAll(".math")];
  const near = new IntersectionObserver(
    (entries) => entries.some((entry) => entry.isIntersecting) && begin(),
    { rootMargin: "1000px" },
  );

  const typeset = async () => {
    await MathJax.startup.promise;
    for (const formula of formulas) {
      await MathJax.typesetPromise([formula]);
      await new Promise((resume) => setTimeout(resume)); // let the reader act
    }
    document.dispatchEvent(new Event("formulas-set"));
  };

  const begin = () => {
    near.disconnect();
    for (const sign of signs) removeEventListener(sign, begin);
    const startup = { ...window.MathJax?.startup, typeset: false };
    window.MathJax = { ...window.MathJax, startup };
    const script = document.createElement("script");
    script.src = mathjax;
    script.addEventListener("load", typeset);
    document.head.append(script);
  };

  if (formulas.length) {
    for (const formula of formulas) near.observe(formula);
    for (const sign of signs) addEventListener(sign, begin, { passive: true });
  }
}

// Boxes that scroll can be reached by keyboard. To know which ones do, the browser has
// to lay them out: a few at a time, when it has nothing else to do.
{
  const soon = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
  const boxes =
    "pre, .cell_output > .output, .jp-RenderedHTMLCommon, .pst-scrollable-table-container, div.math";
  let waiting = [];
  let planned = false;

  const measure = (deadline) => {
    do {
      const box = waiting.shift();
      const { scrollWidth, clientWidth, scrollHeight, clientHeight } = box;
      const scrolls = scrollWidth > clientWidth || scrollHeight > clientHeight;
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    } while (waiting.length && deadline?.timeRemaining() > 8);
    planned = waiting.length > 0;
    if (planned) soon(measure);
  };

  const plan = () => {
    waiting = [...document.querySelectorAll(boxes)];
    if (!planned && waiting.length) soon(measure);
    planned ||= waiting.length > 0;
  };

  let timer;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(plan, 300);
  };
  addEventListener("load", plan);
  addEventListener("resize", later);
  document.addEventListener("toggle", later, true); // what was folded
  document.addEventListener("formulas-set", later);
}

// A recording marked with data-playing plays by itself while it is in view: only
// after the page is complete, and not where the reader wants things to keep still
// or to save data. Its controls stop it for good.
addEventListener("load", () => {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (still || navigator.connection?.saveData) return;
  const stoppedByReader = new WeakSet();
  const pausedByUs = new WeakSet();
  const observer = new IntersectionObserver(
    (entries) => {
      for (const { target: video, isIntersecting } of entries) {
        if (isIntersecting && !stoppedByReader.has(video)) {
          video.play().catch(() => {}); // the poster stays
        } else if (!isIntersecting && !video.paused) {
          pausedByUs.add(video);
          video.pause();
        }
      }
    },
    { threshold: 0.5 },
  );
  for (const video of document.querySelectorAll("video[data-playing]")) {
    video.muted = true;
    video.addEventListener("pause", () => {
      if (!pausedByUs.delete(video)) stoppedByReader.add(video);
    });
    video.addEventListener("play", () => stoppedByReader.delete(video));
    observer.observe(video);
  }
});
