"use strict";
// Adds to the page what needs a script: the choice of a layer and of a data type, the way from a
// tensor to its parameter and back, and the search. `data` is described in page_data.py.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const one = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const MOST = 60; // results that are listed

  // ---- names: {i} is the layer, {0-255} stands for each of these numbers

  const numbers = (text) => (text === "" ? [] : text.split(",").flatMap((run) => {
    const [first, last] = run.split("-").map(Number);
    return Array.from({ length: (last ?? first) - first + 1 }, (_, n) => first + n);
  }));

  const inLayer = (name, layer) => name.replace(/\{i([+-]\d+)?\}/g, (_, shift) => layer + Number(shift ?? 0));

  function unfold(name) {
    const hole = name.match(/\{(\d[\d,-]*)\}/);
    if (!hole) return [name];
    const [before, after] = [name.slice(0, hole.index), name.slice(hole.index + hole[0].length)];
    const tails = unfold(after);
    return numbers(hole[1]).flatMap((n) => tails.map((tail) => before + n + tail));
  }

  // ---- light and dark

  const theme = one("#theme");
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("theme", value);
      return localStorage.getItem("theme");
    } catch { return null; } // a page from a file may have no storage
  };
  const paint = (value) => { if (value) document.documentElement.dataset.theme = value; };
  paint(remembered());
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (isDark ? "dark" : "light");
    const next = now === "dark" ? "light" : "dark";
    paint(next);
    remembered(next);
  });

  // ---- the kind of layer, and the layer

  const kindOf = [];
  data.kinds.forEach((layers, kind) => numbers(layers).forEach((layer) => { kindOf[layer] = kind; }));

  function showKind(kind) {
    all("[data-kind]").forEach((part) => { part.hidden = part.dataset.kind !== String(kind); });
    all("[data-choose]").forEach((button) => {
      button.setAttribute("aria-pressed", button.dataset.choose === String(kind));
    });
  }

  function choose(layer) {
    all(".strip .cell").forEach((cell) => {
      const isChosen = cell.dataset.layer === String(layer);
      cell.setAttribute("aria-pressed", isChosen);
      if (layer !== null) cell.tabIndex = isChosen ? 0 : -1;
    });
    all("code[data-name]").forEach((code) => {
      const name = layer === null ? code.dataset.name : inLayer(code.dataset.name, layer);
      code.replaceChildren(...name.split(/(?<=\.)/).flatMap((text) => [text, document.createElement("wbr")]));
    });
    all(".sources li").forEach((item) => {
      const layers = numbers(item.dataset.layers);
      item.hidden = layer !== null && layers.length > 0 && !layers.includes(layer);
    });
    const told = one("#chosen");
    if (layer === null) {
      told.replaceChildren("Names below stand for every layer {i}.");
      return;
    }
    showKind(kindOf[layer]);
    const back = Object.assign(document.createElement("button"), { type: "button", textContent: "all layers" });
    back.addEventListener("click", () => choose(null));
    told.replaceChildren(`Layer ${layer}: names below are those of this layer.`, back);
  }

  const strip = one(".strip");
  strip.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-layer]");
    if (cell) choose(Number(cell.dataset.layer));
  });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    const cells = all(".strip .cell");
    if (step === undefined || cells.length === 0) return;
    event.preventDefault();
    const next = cells[Math.max(0, Math.min(cells.length - 1, cells.indexOf(event.target) + step))];
    choose(Number(next.dataset.layer));
    next.focus();
  });
  all("[data-choose]").forEach((button) => button.addEventListener("click", () => {
    choose(null);
    showKind(Number(button.dataset.choose));
  }));

  // ---- blocks open to their weights

  function open(id) {
    const block = document.getElementById(id);
    if (block?.tagName !== "DETAILS") return; // other parts of the page have ids too
    const section = block.closest("[data-kind]");
    if (section) showKind(Number(section.dataset.kind));
    block.open = true;
    all(".found").forEach((other) => other.classList.remove("found"));
    block.classList.add("found");
    block.querySelector("summary").focus({ preventScroll: true });
    block.scrollIntoView({ block: "start" });
  }

  one(".figures").addEventListener("click", (event) => {
    const node = event.target.closest("a[href]");
    if (!node) return;
    event.preventDefault();
    all(".figures a.open").forEach((other) => other.classList.remove("open"));
    node.classList.add("open");
    open(node.getAttribute("href").slice(1));
  });

  // ---- memory by part

  function bytes(count) {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (count < 1000) return unit === "B" ? `${Math.round(count)} B` : `${count.toFixed(1)} ${unit}`;
      count /= 1000;
    }
    return `${count.toFixed(1)} TB`;
  }

  one("#dtype").addEventListener("change", (event) => {
    const { values, disk, ranks } = data.memory;
    const width = Number(event.target.value);
    const sizes = event.target.value === "disk" ? disk
      : Object.fromEntries(Object.entries(values).map(([part, count]) => [part, count * width]));
    const whole = Object.values(sizes).reduce((sum, size) => sum + size, 0);
    all("#bars li").forEach((row) => {
      const size = sizes[row.className] ?? 0;
      row.querySelector("rect").setAttribute("width", `${(100 * size) / whole}%`);
      row.querySelector(".size").textContent = bytes(size);
      row.querySelector("small").textContent = `${((100 * size) / whole).toFixed(1)} %`;
    });
    one("#total").textContent = bytes(whole);
    if (ranks.length && width) one("#more").textContent = `a rank holds ${bytes(Math.max(...ranks) * width)}`;
  });

  // ---- tensors, both ways

  let known = null;

  // Every tensor and parameter by name; made when first asked for.
  function entries() {
    if (known) return known;
    known = [];
    for (const parameter of data.parameters) {
      for (const link of parameter.links) {
        for (const layer of link.layers ? numbers(link.layers) : [null]) {
          const target = inLayer(parameter.name, layer);
          for (const source of [link.source, link.scales]) {
            if (!source) continue;
            for (const name of unfold(inLayer(source, layer))) {
              known.push({ name, target, layer, link, block: parameter.block });
            }
          }
        }
      }
      if (parameter.links.length) continue;
      for (const layer of parameter.layers ? numbers(parameter.layers) : [null]) {
        const target = inLayer(parameter.name, layer);
        known.push({ name: "", target, layer, note: parameter.note || "no tensor", block: parameter.block });
      }
    }
    for (const { names, why } of data.ignored) {
      for (const name of names.flatMap(unfold)) known.push({ name, target: "", note: `not used: ${why}` });
    }
    return known;
  }

  // The words of a query stand in a name in this order.
  function holds(name, words) {
    let at = 0;
    for (const word of words) {
      const found = name.indexOf(word, at);
      if (found < 0) return false;
      at = found + word.length;
    }
    return true;
  }

  function element(tag, text, attributes = {}) {
    return Object.assign(document.createElement(tag), { textContent: text, ...attributes });
  }

  function shown(entry) {
    const item = document.createElement("li");
    if (entry.name) item.append(element("code", entry.name));
    if (entry.target) {
      const parts = [entry.link?.part && `part ${entry.link.part}`, entry.link?.rows, entry.link?.does];
      const way = element("a", `→ ${entry.target}`, { href: `#${entry.block}` });
      way.addEventListener("click", (event) => {
        event.preventDefault();
        if (entry.layer !== null) choose(entry.layer);
        open(entry.block);
      });
      item.append(way, element("small", parts.filter(Boolean).join(", ")));
    }
    if (entry.note) item.append(element("small", entry.note));
    return item;
  }

  const query = one("#query");
  function search() {
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = words.length === 0 ? []
      : entries().filter((e) => holds(e.name.toLowerCase(), words) || holds(e.target.toLowerCase(), words));
    one("#results").replaceChildren(...found.slice(0, MOST).map(shown));
    const more = found.length > MOST ? `, the first ${MOST} are listed` : "";
    one("#count").textContent = words.length === 0 ? "" : `${found.length.toLocaleString("en")} found${more}`;
  }

  if (query) {
    one(".search").hidden = false;
    query.addEventListener("input", search);
    document.addEventListener("click", (event) => {
      const code = event.target.closest("a.tensor")?.querySelector("code");
      if (!code) return;
      event.preventDefault();
      query.value = code.textContent.replace(/\{[^}]*\}/g, " ");
      search();
      one("#tensors").scrollIntoView({ block: "start" });
      query.focus({ preventScroll: true });
    });
  }

  const counts = data.kinds.map((layers) => numbers(layers).length);
  showKind(counts.indexOf(Math.max(...counts)));
  window.addEventListener("hashchange", () => open(location.hash.slice(1)));
  if (location.hash.length > 1) open(location.hash.slice(1));
})();
