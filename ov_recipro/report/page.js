"use strict";
(() => {
  const LARGEST = 224; // pixels of a drawn map's longer side; the browser enlarges it from there
  const listOf = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
  const colours = listOf("colours");
  const signedColours = listOf("signed-colours");
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);

  const { method } = byId("cards").dataset;
  const fromZero = "fromZero" in byId("cards").dataset; // scores are what each cell's loss costs, or the like
  const isSigned = () => byId("signed")?.checked ?? false;

  // Scale scores [H][W] to a map of 0..1, from the lowest or, if they are costs, from 0; if signed,
  // to one of -1..1 around `zero`. All zeros if there is nothing to scale.
  const scaled = (raw, zero) => {
    const values = raw.flat();
    const signed = isSigned();
    const low = signed ? zero : fromZero ? 0 : Math.min(...values);
    const span = Math.max(...values.map((value) => (signed ? Math.abs(value - low) : value - low)));
    const least = fromZero && !signed ? 0 : -Infinity;
    return raw.map((row) => row.map((value) => (span > 0 ? Math.max(least, value - low) / span : 0)));
  };

  // Interpolate between the cells' centres, or, with `whole`, return the cell's own value.
  const sample = (map, y, x, whole) => {
    const rows = map.length, columns = map[0].length;
    if (whole) return map[Math.min(rows - 1, Math.floor(y * rows))][Math.min(columns - 1, Math.floor(x * columns))];
    const v = Math.min(rows - 1, Math.max(0, y * rows - 0.5));
    const u = Math.min(columns - 1, Math.max(0, x * columns - 0.5));
    const v0 = Math.floor(v), u0 = Math.floor(u);
    const v1 = Math.min(rows - 1, v0 + 1), u1 = Math.min(columns - 1, u0 + 1);
    const above = map[v0][u0] * (1 - u + u0) + map[v0][u1] * (u - u0);
    const below = map[v1][u0] * (1 - u + u0) + map[v1][u1] * (u - u0);
    return above * (1 - v + v0) + below * (v - v0);
  };

  // Return a map [H][W] from the form that a large one is kept in.
  const unpacked = ({ shape: [rows, columns], step, numbers }) => {
    const bytes = atob(numbers);
    const number = (place) => ((bytes.charCodeAt(2 * place) | bytes.charCodeAt(2 * place + 1) << 8) << 16) >> 16;
    return Array.from({ length: rows }, (_, row) =>
      Array.from({ length: columns }, (_, column) => Number((step * number(row * columns + column)).toPrecision(3))));
  };

  const PROMPT = "Point at a cell to read its score.";

  // A picture with heat: an image, or the reference that it is compared with.
  class Picture {
    constructor(frame, card, number) {
      this.frame = frame;
      this.card = card;
      this.number = number;
      this.canvas = frame.querySelector("canvas");
      this.grey = frame.querySelector(".grey");
      this.box = frame.querySelector(".cell");
      this.reading = document.getElementById(frame.getAttribute("aria-describedby"));
      this.at = null;
      frame.addEventListener("pointermove", (event) => this.point(event));
      frame.addEventListener("pointerdown", (event) => this.point(event));
      frame.addEventListener("pointerleave", () => this.leave());
      frame.addEventListener("blur", () => this.leave());
      frame.addEventListener("keydown", (event) => this.step(event));
    }

    get data() { return this.card.data[this.number]; }

    get target() { return Math.min(this.card.target, this.data.raw.length - 1); }

    get raw() { return this.data.raw[this.target]; }

    get map() { return scaled(this.raw, this.data.zeros?.[this.target]); }

    draw() {
      const { map, canvas } = this;
      const [left, top, right, bottom] = this.data.window;
      for (const layer of [canvas, this.grey]) {
        if (layer) Object.assign(layer.style, {
          left: `${100 * left}%`, top: `${100 * top}%`,
          width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
        });
      }
      const wide = (right - left) * this.frame.clientWidth, tall = (bottom - top) * this.frame.clientHeight;
      const factor = LARGEST / Math.max(wide, tall, 1);
      canvas.width = Math.max(1, Math.round(wide * factor));
      canvas.height = Math.max(1, Math.round(tall * factor));
      const context = canvas.getContext("2d");
      const pixels = context.createImageData(canvas.width, canvas.height);
      const whole = byId("cells").checked, signed = isSigned();
      let place = 0;
      for (let y = 0; y < canvas.height; y += 1) {
        for (let x = 0; x < canvas.width; x += 1) {
          const value = sample(map, (y + 0.5) / canvas.height, (x + 0.5) / canvas.width, whole);
          const [red, green, blue] = signed
            ? signedColours[Math.round(127.5 * (value + 1))] : colours[Math.round(255 * value)];
          pixels.data[place] = red;
          pixels.data[place + 1] = green;
          pixels.data[place + 2] = blue;
          pixels.data[place + 3] = signed ? Math.round(255 * Math.sqrt(Math.abs(value))) : 255;
          place += 4;
        }
      }
      context.putImageData(pixels, 0, 0);
    }

    point(event) {
      const area = this.frame.getBoundingClientRect();
      const [left, top, right, bottom] = this.data.window;
      const x = ((event.clientX - area.left) / area.width - left) / (right - left);
      const y = ((event.clientY - area.top) / area.height - top) / (bottom - top);
      if (x < 0 || y < 0 || x >= 1 || y >= 1) {
        this.leave();
        this.reading.textContent = "The model did not see this part.";
        return;
      }
      this.show(Math.floor(y * this.raw.length), Math.floor(x * this.raw[0].length));
    }

    step(event) {
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
      const move = moves[event.key];
      if (!move) return;
      event.preventDefault();
      const [row, column] = this.at ? [this.at[0] + move[0], this.at[1] + move[1]] : [0, 0];
      this.show(
        Math.min(this.raw.length - 1, Math.max(0, row)),
        Math.min(this.raw[0].length - 1, Math.max(0, column)),
      );
    }

    show(row, column) {
      this.at = [row, column];
      const rows = this.raw.length, columns = this.raw[0].length;
      const [left, top, right, bottom] = this.data.window;
      const wide = (right - left) / columns, tall = (bottom - top) / rows;
      Object.assign(this.box.style, {
        left: `${100 * (left + column * wide)}%`, top: `${100 * (top + row * tall)}%`,
        width: `${100 * wide}%`, height: `${100 * tall}%`,
      });
      this.box.hidden = false;
      this.reading.textContent =
        `Row ${row + 1} of ${rows}, column ${column + 1} of ${columns}: ` +
        `${this.inWords(this.raw[row][column])}heat ${this.map[row][column].toFixed(2)}.`;
    }

    // Say what a cell scores or, of a dropped or hidden one, what its loss costs.
    inWords(score) {
      const name = this.data.names[this.target];
      if (method === "aise") return ""; // its maps are scaled
      if (method === "votes") return `the best candidate here votes ${score} for ${name}; `;
      if (fromZero) {
        const missed = this.data.gains?.[this.target]; // then scores are what each loss gains
        const rises = missed ? score > 0 : score < 0;
        const change = `the score for ${name} ${rises ? "rises" : "falls"} by ${Math.abs(score)}`;
        return method === "recipro" ? `without this cell, ${change}; ` : `with this place hidden, ${change} on average; `;
      }
      const alone = `this cell alone scores ${score} for ${name}`;
      const zero = this.data.zeros?.[this.target];
      if (zero === undefined) return `${alone}; `;
      const more = Number((score - zero).toPrecision(3));
      return `${alone}, ${Math.abs(more)} ${more < 0 ? "less" : "more"} than no cell; `;
    }

    leave() {
      this.at = null;
      this.box.hidden = true;
      this.reading.textContent = PROMPT;
    }
  }

  class Card {
    constructor(element) {
      this.element = element;
      this.select = element.querySelector(".target");
      this.pictures = [...element.querySelectorAll(".frame")].map((frame, n) => new Picture(frame, this, n));
      this.choices = [...element.querySelectorAll("[data-choose]")]; // boxes, on the picture and in a list
      this.select.addEventListener("change", () => this.switchTarget());
      for (const choice of this.choices) choice.addEventListener("click", () => {
        this.select.value = choice.dataset.choose;
        this.switchTarget();
      });
    }

    get data() { // parsed on first use
      if (!this.parsed) {
        this.parsed = JSON.parse(this.element.querySelector("script").textContent);
        for (const picture of this.parsed) {
          picture.raw = picture.raw.map((raw) => (Array.isArray(raw) ? raw : unpacked(raw)));
        }
      }
      return this.parsed;
    }

    get target() { return Number(this.select.value); }

    draw() {
      for (const picture of this.pictures) {
        picture.draw();
        if (picture.at) picture.show(...picture.at);
      }
      this.drawn = true;
    }

    switchTarget() {
      for (const about of this.element.querySelectorAll(".about")) {
        about.hidden = Number(about.dataset.target) !== this.target;
      }
      for (const choice of this.choices) {
        const current = Number(choice.dataset.choose) === this.target;
        choice.classList.toggle("current", current);
        if (choice.matches("button")) choice.setAttribute("aria-pressed", String(current));
      }
      this.draw();
    }
  }

  const cards = [...document.querySelectorAll(".card")].map((element) => new Card(element));
  const cardOf = new Map(cards.map((card) => [card.element, card]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = cardOf.get(entry.target);
      card.near = entry.isIntersecting;
      if (card.near && !card.drawn) card.draw();
    }
  }, { rootMargin: "200px" });
  for (const card of cards) seen.observe(card.element);

  const opacity = byId("opacity");
  const setOpacity = () => root.style.setProperty("--opacity", String(opacity.value / 100));
  opacity.addEventListener("input", setOpacity);
  setOpacity();

  const redraw = () => {
    for (const card of cards) {
      card.drawn = false;
      if (card.near) card.draw();
    }
  };
  const sign = () => {
    root.classList.toggle("signed", isSigned());
    for (const each of document.querySelectorAll("[data-signed]")) {
      each.hidden = each.dataset.signed !== String(isSigned());
    }
  };
  byId("cells").addEventListener("change", redraw);
  byId("signed")?.addEventListener("change", () => { sign(); redraw(); });
  sign();

  const compare = (on) => root.classList.toggle("compare", on);
  const button = byId("compare");
  button.addEventListener("pointerdown", () => compare(true));
  for (const end of ["pointerup", "pointerleave", "pointercancel", "blur"]) {
    button.addEventListener(end, () => compare(false));
  }
  const isTyped = (event) => event.target.matches("input[type=search]");
  const holds = (event) =>
    (event.key.toLowerCase() === "c" && !isTyped(event) && !event.ctrlKey && !event.metaKey && !event.altKey) ||
    (event.target === button && (event.key === " " || event.key === "Enter"));
  document.addEventListener("keydown", (event) => { if (holds(event)) compare(true); });
  document.addEventListener("keyup", () => compare(false));
  window.addEventListener("blur", () => compare(false));

  const find = byId("find"), least = byId("least"), verdict = byId("verdict"), order = byId("order");
  const ranks = verdict ? [...verdict.options].map((option) => option.value) : []; // best first
  const rank = (card) => Math.max(-1, ...card.element.dataset.verdicts.split("|").map((v) => ranks.indexOf(v)));
  const confidence = (card) => Number(card.element.dataset.confidence);
  const orders = {
    given: () => 0,
    confident: (a, b) => confidence(b) - confidence(a),
    unsure: (a, b) => confidence(a) - confidence(b),
    class: (a, b) => a.element.dataset.class.localeCompare(b.element.dataset.class),
    verdict: (a, b) => rank(b) - rank(a),
  };
  const filter = () => {
    const words = find.value.trim().toLowerCase().split(/\s+/);
    let count = 0;
    for (const card of cards) {
      const { search, verdicts } = card.element.dataset;
      const fits = words.every((word) => search.includes(word)) &&
        (least.value === "0" || confidence(card) >= least.value / 100) && // logits can be below 0
        (!verdict || !verdict.value || verdicts.split("|").includes(verdict.value));
      card.element.hidden = !fits;
      count += fits;
    }
    byId("least-value").textContent = `${least.value} %`;
    byId("count").textContent = `${count} of ${cards.length} images`;
  };
  for (const control of [find, least, verdict]) control?.addEventListener("input", filter);
  order.addEventListener("input", () => {
    const sorted = [...cards].sort((a, b) =>
      orders[order.value](a, b) || a.element.dataset.number - b.element.dataset.number);
    byId("cards").replaceChildren(...sorted.map((card) => card.element));
  });
})();
