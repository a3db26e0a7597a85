// What the pages do by themselves.

// Formulas: MathJax, which weighs more than a page, comes when a formula is in view,
// or when the reader does anything at all, such as scrolling.
{
  const mathjax = new URL("mathjax/tex-chtml.js", document.currentScript.src);
  const signs = ["scroll", "pointerdown", "keydown", "beforeprint"];
  const formulas = [...document.querySelectorAll(".math")];
  const near = new IntersectionObserver(
    (entries) => entries.some((entry) => entry.isIntersecting) && begin(),
  );

  const typeset = async () => {
    await MathJax.startup.promise;
    for (const formula of formulas) {
      await MathJax.typesetPromise([formula]);
      await new Promise((resume) => setTimeout(resume)); // let the reader act
    }
  };

  const begin = () => {
    near.disconnect();
    for (const sign of signs) removeEventListener(sign, begin);
    const startup = { ...window.MathJax?.startup, typeset: false };
    window.MathJax = { ...window.MathJax, startup };
    const script = document.createElement("script");
    script.src = mathjax;
    script.addEventListener("load", typeset);
    const retry = () => addEventListener("online", begin, { once: true });
    script.addEventListener("error", retry);
    document.head.append(script);
  };

  if (formulas.length) {
    for (const formula of formulas) near.observe(formula);
    for (const sign of signs) addEventListener(sign, begin, { passive: true });
  }
}

// The fonts of the icons weigh more than a page: they come once its text is there.
{
  const show = () => (document.documentElement.dataset.icons = "");
  new PerformanceObserver(show).observe({ type: "paint", buffered: true });
  addEventListener("load", () => setTimeout(show, 3000)); // if nobody tells of paint
}

// Old addresses: a section that is not here any more may have gone elsewhere.
{
  const missing = location.hash.slice(1);
  const list = new URL("moved.json", document.currentScript.src);
  if (missing && !document.getElementById(missing)) {
    const page = location.pathname.split("/").pop().replace(/\.html$/, "");
    fetch(list)
      .then((answer) => answer.json())
      .then((moved) => moved[page]?.[missing]?.split("#"))
      .then((to) => to && location.replace(`${to[0]}.html#${to[1] ?? ""}`))
      .catch(() => {}); // without a connection, one stays here
  }
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
