
// -- page: what is said of the chosen token, and what the reader's hand does -----------------------

const $ = (id) => document.getElementById(id);

/** An element with text; text is never read as HTML. */
function element(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// -- words ----------------------------------------------------------------------------------------

const MOST_RUNS = 6;
const plural = (total, one) => `${number.format(total)} ${one}${total === 1 ? "" : "s"}`;
const percent = (share) => (share >= 0.1 ? share * 100 : share * 100).toFixed(1) + " %";

/** Runs in words, as positions that a reader counts: the last of each included. */
function sayRuns(runs) {
  const said = [];
  for (let i = 0; i < runs.length && said.length < MOST_RUNS; i += 2) {
    said.push(runs[i + 1] - runs[i] === 1 ? `${runs[i]}` : `${runs[i]}\u2013${runs[i + 1] - 1}`);
  }
  const more = runs.length / 2 - said.length;
  return said.join(", ") + (more > 0 ? ` and ${plural(more, "run")} more` : "");
}

/** Where a key stands in an image. */
function sayPlace(entry, key) {
  if (!entry.canvas) return "";
  const { frames, height, width, text } = entry.canvas;
  if (key < text) return " (text)";
  const pixel = key - text;
  const inside = pixel % (height * width);
  const frame = frames > 1 ? `frame ${Math.floor(pixel / (height * width))}, ` : "";
  return ` (${frame}row ${Math.floor(inside / width)}, column ${inside % width})`;
}

function sayReads(state, at) {
  const { entry, head } = state;
  if (state.look === "key") {
    const runs = readersOf(entry, head, at);
    const whom = count(runs) ? `: ${sayRuns(runs)}` : "";
    return `Key ${at}${sayPlace(entry, at)} is read by ${number.format(count(runs))} of ${plural(entry.queries, "query").replace("querys", "queries")}${whom}.`;
  }
  const { rows, levels } = entry.heads[head];
  const runs = joined(rows[at]);
  const where = count(runs) ? `: ${sayRuns(runs)}` : "";
  const pooled = levels?.[at].some((one) => one > 0)
    ? ` Far ones as means of up to ${2 ** most(levels[at])}.` : "";
  return `Query ${at}${sayPlace(entry, ownKey(entry, at))} reads ${number.format(count(runs))} of ${plural(entry.length, "key")}${where}.${pooled}`;
}

function sayTiles(state, at) {
  const tiles = tilesOf(state.entry, state.head, state.look, at);
  if (!tiles) return "Pooled keys are computed in tiles over all levels side by side.";
  if (!tiles.length) return state.look === "query" ? "None: it reads nothing." : "None: nobody reads it.";
  if (state.look === "key") return `It stands in ${plural(tiles.length, "tile")}.`;
  return tiles.map(([queries, keys]) =>
    `${plural(count(queries), "query").replace("querys", "queries")} \u00d7 ${plural(count(keys), "key")}, computed together: ` +
    `${sayRuns(queries)} by ${sayRuns(keys)}.`).join(" ");
}

function sayCache(state, at) {
  const { entry } = state;
  if (!entry.keeps) return "None: a token reads later ones, so they cannot come one at a time.";
  if (state.look === "key") {
    const last = keptUntil(entry, at);
    return last < at ? "Nothing reads it later: it need not be held." : `Held until token ${last}.`;
  }
  const kept = keptAfter(entry, at);
  if (!kept) return `Tokens up to ${entry.keeps.first} come at once.`;
  return `After token ${at} it holds ${plural(count(kept), "token")}${kept.length ? ": " + sayRuns(kept) : ""}.`;
}

function sayShards(state, at) {
  const parts = shardsOf(state.entry, state.ranks);
  if (!parts) return "Its queries are not its tokens, so they are not cut alike.";
  const mine = parts.find(({ own }) => has(own, at));
  if (state.look === "key") {
    const others = parts.filter(({ fetched }) => has(fetched, at)).map(({ rank }) => rank);
    const whom = others.length ? `rank ${others.join(", ")} fetches it` : "nobody else fetches it";
    return `Rank ${mine.rank} of ${parts.length} has it; ${whom}.`;
  }
  const from = parts.filter(({ own, rank }) => rank !== mine.rank &&
    runsOf(state.entry.length, (key) => has(own, key) && has(mine.fetched, key)).length);
  const said = from.length ? `: ${sayRuns(mine.fetched)}, from rank ${from.map(({ rank }) => rank).join(", ")}` : "";
  return `Rank ${mine.rank} of ${parts.length} has tokens ${sayRuns(mine.own)} and fetches ${plural(count(mine.fetched), "key")}${said}.`;
}

// -- numbers of the whole pattern -----------------------------------------------------------------

function costRows(tables, state) {
  const { entry } = state;
  const dense = entry.queries * entry.length * entry.numHeads;
  const flops = (pairs) => 4 * tables.headDim * pairs; // two products of a multiply-add each
  const rows = [
    ["pairs allowed", entry.pairs, dense],
    ["pairs computed", entry.visited, dense],
    ["FLOPs", flops(entry.visited), flops(dense)],
    ["keys a query, mean", entry.pairs / entry.queries / entry.numHeads, entry.length],
  ];
  if (entry.keeps) rows.push(["tokens cached, most", most(entry.keeps.runs.map(count)), entry.length]);
  const parts = shardsOf(entry, state.ranks);
  if (parts) {
    const others = most(parts.map(({ own }) => entry.length - count(own)));
    rows.push([`keys a rank of ${parts.length} fetches, most`, most(parts.map(({ fetched }) => count(fetched))), others]);
  }
  return rows;
}

const sayNumber = (value) =>
  value >= 1e6 ? `${(value / 1e6).toPrecision(3)} M` : number.format(Math.round(value * 10) / 10);

function showCosts(tables, state) {
  $("costs").replaceChildren(...costRows(tables, state).map(([name, own, dense]) => {
    const row = element("tr");
    row.append(
      element("th", name, { scope: "row" }),
      element("td", sayNumber(own), { "data-value": own }),
      element("td", sayNumber(dense), { "data-value": dense }),
      element("td", dense ? percent(own / dense) : ""),
    );
    return row;
  }));
  $("flops-note").textContent =
    `FLOPs: both matrix products, forward, of heads of ${tables.headDim} features, over the pairs that tiles compute.`;
}

// -- the page -------------------------------------------------------------------------------------

const LEGEND = {
  nothing: [],
  tiles: [["computed", "computed in a tile, then masked"]],
  cache: [["kept", "held by a cache after that token"]],
  shards: [["own", "the rank's own tokens"], ["fetched", "fetched from other ranks"]],
};

class Page {
  constructor(tables) {
    this.tables = tables;
    this.picture = null;
    this.fill($("family"), tables.families.map((one) => one.name));
    this.fill($("ranks"), tables.ranks.map(String));
    this.listen();
    this.read();
  }

  fill(select, values, label = (one) => one) {
    select.replaceChildren(...values.map((one) => element("option", label(one), { value: one })));
  }

  /** Take the state from the address. */
  read() {
    this.state = parseState(this.tables, location.hash);
    this.show();
  }

  /** Change the state, keep it in the address, show it. */
  change(change) {
    Object.assign(this.state, change);
    fitState(this.state);
    this.show();
    // a page in a frame, or a file, may not be allowed to
    try { history.replaceState(null, "", formatState(this.state)); } catch { /* it works without */ }
  }

  /** Another kind of pattern, with its first options. */
  choose(name) {
    const { look, show, ranks } = this.state;
    const state = parseState(this.tables, "#" + new URLSearchParams({ pattern: name, look, show, ranks }));
    this.change(state);
  }

  // -- showing --

  show() {
    const { state } = this;
    const { entry } = state;
    $("family").value = state.family.name;
    $("about").textContent = state.family.about;
    this.showOptions();
    $("problem").hidden = !entry.error;
    $("problem").textContent = entry.error ? `These options do not go together: ${entry.error}` : "";
    $("shown").hidden = Boolean(entry.error);
    if (entry.error) return;
    $("text").firstChild.textContent = entry.text;
    for (const name of ["look", "show"]) {
      document.querySelector(`input[name="${name}"][value="${state[name]}"]`).checked = true;
    }
    for (const option of $("ranks").options) option.hidden = option.disabled = !entry.needs?.[option.value];
    $("ranks").value = state.ranks;
    $("ranks-field").hidden = !entry.needs;
    $("head-field").hidden = entry.heads.length < 2;
    this.fill($("head"), entry.heads.map((_, at) => String(at)));
    $("head").value = String(state.head);
    $("image-figure").hidden = !entry.canvas;
    $("at").max = (state.look === "query" ? entry.queries : entry.length) - 1;
    showCosts(this.tables, state);
    this.showLegend();
    this.paint();
  }

  showOptions() {
    const { family, values } = this.state;
    if (this.optionsOf !== family) {
      this.optionsOf = family;
      $("options").replaceChildren(...family.options.map(([name, known]) => {
        const label = element("label", name.replaceAll("_", " ") + " ", { class: "field" });
        const select = element("select", "", { id: "option-" + name });
        this.fill(select, known, (one) => one.replace(/^'(.*)'$/, "$1"));
        select.addEventListener("change", () =>
          this.change({ values: { ...this.state.values, [name]: select.value } }));
        label.append(select);
        return label;
      }));
    }
    for (const [name] of family.options) $("option-" + name).value = values[name];
  }

  showLegend() {
    const { look, show, entry } = this.state;
    const known = [["chosen", `the chosen ${look}`], ["read", look === "query" ? "what it reads" : "what reads it"]];
    if (entry.causal && entry.queries === entry.length) known.push(["future", "the future"]);
    $("legend").replaceChildren(...[...known, ...LEGEND[show]].map(([name, text]) => {
      const item = element("li");
      const swatch = element("i", "", { "aria-hidden": "true" });
      swatch.style.background = `var(--${name})`;
      item.append(swatch, document.createTextNode(text));
      return item;
    }));
  }

  /** Everything anew: sizes, colours or the pattern have changed. */
  paint() {
    if (this.state.entry.error) return;
    this.picture = paintMask($("mask"), this.state);
    this.point(this.state.at);
  }

  /** Show a query or key, chosen or only pointed at. */
  point(at) {
    const { state } = this;
    const { entry } = state;
    this.pointed = at;
    paintChosen($("mask"), this.picture, state, at);
    if (entry.canvas) paintImage($("image"), state, at);
    $("image-caption").textContent = entry.canvas
      ? (state.look === "query" ? "What the query reads, where it stands." : "What reads the key, where it stands.") : "";
    const said = { [state.look === "query" ? "Reads" : "Readers"]: sayReads(state, at), Tile: sayTiles(state, at),
      Cache: sayCache(state, at), "Cut over ranks": sayShards(state, at) };
    $("readout").replaceChildren(...Object.entries(said).flatMap(([name, text]) =>
      [element("dt", name), element("dd", text)]));
    $("at").value = at;
    for (const one of [$("mask"), $("image"), $("at")]) {
      const values = { valuemin: 0, valuemax: $("at").max, valuenow: at, valuetext: said.Reads ?? said.Readers, label: state.look };
      for (const [key, value] of Object.entries(values)) one.setAttribute("aria-" + key, value);
    }
  }

  // -- the reader's hand --

  listen() {
    $("family").addEventListener("change", (event) => this.choose(event.target.value));
    $("ranks").addEventListener("change", (event) => this.change({ ranks: event.target.value, show: "shards" }));
    $("head").addEventListener("change", (event) => this.change({ head: Number(event.target.value) }));
    $("look").addEventListener("change", (event) => this.change({ look: event.target.value, at: null }));
    $("show").addEventListener("change", (event) => this.change({ show: event.target.value }));
    $("at").addEventListener("input", (event) => this.move(Number(event.target.value)));
    $("less").addEventListener("click", () => this.move(this.state.at - 1));
    $("more").addEventListener("click", () => this.move(this.state.at + 1));
    $("copy").addEventListener("click", () => this.copy());
    this.listenOn($("mask"), maskPlace);
    this.listenOn($("image"), imagePlace);
    window.addEventListener("hashchange", () => this.read());
    window.addEventListener("resize", () => this.paint());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.paint());
  }

  listenOn(canvas, placeOf) {
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return placeOf(canvas, this.state, event.clientX - box.left, event.clientY - box.top);
    };
    canvas.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (event.pointerType !== "mouse" || event.buttons) this.move(at);
      else if (at !== this.pointed) this.point(at);
    });
    canvas.addEventListener("pointerdown", (event) => this.move(place(event)));
    canvas.addEventListener("pointerleave", () => this.point(this.state.at));
    canvas.addEventListener("keydown", (event) => this.key(event, canvas === $("image")));
  }

  move(at) {
    const last = Number($("at").max);
    const next = Math.max(0, Math.min(at, last));
    if (next !== this.state.at || next !== this.pointed) {
      this.state.at = next;
      this.point(next);
      try { history.replaceState(null, "", formatState(this.state)); } catch { /* as above */ }
    }
  }

  /** Arrow keys: a token on; on an image, up and down a row. */
  key(event, onImage) {
    const { entry, at } = this.state;
    const column = onImage && !entry.ownKeys ? entry.canvas.width : 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -column, ArrowDown: column, PageUp: -16, PageDown: 16,
      Home: -at, End: entry.length };
    if (!(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.move(at + steps[event.key]);
  }

  async copy() {
    try {
      await navigator.clipboard.writeText(this.state.entry.text);
      $("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren($("text"));
      $("copied").textContent = "It is marked above: copy it by hand.";
    }
  }
}

readTables().then((tables) => { window.explorer = new Page(tables); }, () => {
  $("problem").hidden = false;
  $("problem").textContent = "This browser is too old to unpack the tables of this page.";
});
