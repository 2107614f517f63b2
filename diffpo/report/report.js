"use strict";
// Enlarging images, playing clips in step, and showing one category. Without it everything can still be read.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const viewer = document.getElementById("viewer");
  const said = (name) => viewer.querySelector(`[data-say="${name}"]`);
  let shown = [];
  let place = 0;

  function show(index) {
    place = (index + shown.length) % shown.length;
    const button = shown[place];
    const small = button.querySelector("img, video");
    const caption = button.closest("figure").querySelector("figcaption");
    for (const large of all("img, video", viewer)) {
      large.hidden = large.tagName !== small.tagName;
      if (large.hidden) {
        large.removeAttribute("src");
      } else {
        large.src = small.src;
        large.className = small.className;
        if (small.tagName === "IMG") large.alt = small.alt;
        else large.play().catch(() => {});
      }
    }
    said("label").textContent = button.dataset.label;
    said("score").textContent = button.dataset.score;
    said("prompt").textContent = caption.querySelector(".text").textContent;
    said("file").textContent = `${caption.querySelector("small").textContent}, ${button.dataset.file}`;
    said("place").textContent = `${place + 1} of ${shown.length}`;
  }

  function open(button) {
    shown = all(".zoom").filter((other) => !other.closest("[hidden]"));
    show(shown.indexOf(button));
    viewer.showModal();
  }

  all(".zoom").forEach((button) => button.addEventListener("click", () => open(button)));
  all("[data-step]", viewer).forEach((button) =>
    button.addEventListener("click", () => show(place + Number(button.dataset.step))));
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      show(place + step);
    }
  });
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("close", () => {
    viewer.querySelector("video").pause();
    shown[place].focus();
  });

  // The clips of a figure follow one clock: they start, stop, jump and begin again together.
  const LATE = 0.08;  // seconds that a clip may be off the clock

  function player(figure) {
    const clips = all("video", figure);
    const button = figure.querySelector(".play");
    const slider = figure.querySelector(".track input");
    let time = 0;
    let before = null;  // when the clock was read last; null while it stands
    let wanted = !matchMedia("(prefers-reduced-motion: reduce)").matches;

    const length = () => Math.max(...clips.map((clip) => clip.duration || 0));

    function place(clip) {
      clip.currentTime = Math.min(time, Math.max(0, (clip.duration || 0) - 0.001));
    }

    function tick(now) {
      if (before === null) return;
      time += (now - before) / 1000;
      before = now;
      const seconds = length();
      if (seconds && time >= seconds) {
        time = 0;
        clips.forEach(place);
      }
      for (const clip of clips) {
        if (Math.abs(clip.currentTime - time) > LATE && time < clip.duration) place(clip);
        if (clip.paused && time < clip.duration) clip.play().catch(() => {});
      }
      slider.value = seconds ? time / seconds : 0;
      requestAnimationFrame(tick);
    }

    function run(going) {
      if (going === (before !== null)) return;
      button.classList.toggle("playing", going);
      button.setAttribute("aria-label", going ? "Pause" : "Play");
      before = going ? performance.now() : null;
      if (going) {
        requestAnimationFrame(tick);
      } else {
        clips.forEach((clip) => clip.pause());
        clips.forEach(place);
      }
    }

    button.addEventListener("click", () => {
      wanted = before === null;
      run(wanted);
    });
    slider.addEventListener("input", () => {
      wanted = false;
      run(false);
      time = slider.value * length();
      clips.forEach(place);
    });
    new IntersectionObserver(([entry]) => run(wanted && entry.isIntersecting)).observe(figure);
  }

  all(".example.moving").forEach(player);

  const select = document.getElementById("category");

  function filter() {
    const category = select.value;
    let count = 0;
    for (const group of all(".group")) {
      let visible = 0;
      for (const example of all(".example", group)) {
        const fits = category ? example.dataset.category === category : "overall" in example.dataset;
        example.hidden = !fits;
        visible += fits;
      }
      group.querySelector(".empty").hidden = visible > 0;
      count += visible;
    }
    all("tr[data-category]").forEach((row) => row.classList.toggle("chosen", row.dataset.category === category));
    all(".pick").forEach((pick) => pick.setAttribute("aria-pressed", String(pick.dataset.pick === category)));
    document.getElementById("count").textContent = category ? `${count} examples of ${category}` : `${count} examples`;
  }

  if (select) {
    select.addEventListener("change", filter);
    all(".pick").forEach((pick) => pick.addEventListener("click", () => {
      select.value = select.value === pick.dataset.pick ? "" : pick.dataset.pick;
      filter();
    }));
    filter(); // browsers keep what was chosen when a page is loaded again
  }

  addEventListener("beforeprint", () => all("details").forEach((item) => { item.open = true; }));
})();
