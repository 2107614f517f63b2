"use strict";
// Enlarging images, and showing one category. Without it everything can still be read.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const viewer = document.getElementById("viewer");
  const said = (name) => viewer.querySelector(`[data-say="${name}"]`);
  let shown = [];
  let place = 0;

  function show(index) {
    place = (index + shown.length) % shown.length;
    const button = shown[place];
    const image = button.querySelector("img");
    const large = viewer.querySelector("img");
    const caption = button.closest("figure").querySelector("figcaption");
    large.src = image.src;
    large.alt = image.alt;
    large.className = image.className;
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
  viewer.addEventListener("close", () => shown[place].focus());

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
