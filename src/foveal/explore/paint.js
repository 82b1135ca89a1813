
// -- paint: a mask and an image on canvases, in the colours of the style sheet ---------------------

const MARGIN = { left: 34, top: 22, bottom: 2 };
const LEVEL_SHADE = 0.62; // of a level of pooled keys beside the one below

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name);

/** A canvas as wide as its place and so many CSS pixels high, sharp on any screen. */
function prepare(canvas, heightOf) {
  const width = canvas.parentElement.clientWidth;
  const height = Math.round(heightOf(width));
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = height + "px";
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.fillStyle = colour("paper");
  context.fillRect(0, 0, width, height);
  context.font = "11px system-ui, sans-serif";
  return { context, width, height };
}

// -- the mask -------------------------------------------------------------------------------------

/** Sizes of the mask in CSS pixels, for a canvas so wide. */
function maskSizes(entry, width) {
  const cell = (width - MARGIN.left - 2) / entry.length;
  const rows = Math.max(cell, 48 / entry.queries);
  return { cell, row: rows, height: MARGIN.top + rows * entry.queries + MARGIN.bottom };
}

/** Everything that does not change with the chosen token; returns a picture of it. */
function paintMask(canvas, state) {
  const { entry } = state;
  const { context, width } = prepare(canvas, (wide) => maskSizes(entry, wide).height);
  const { cell, row } = maskSizes(entry, width);
  const colours = {}; // asked for once: there are thousands of cells
  const ratio = window.devicePixelRatio || 1;
  const snap = (at) => Math.round(at * ratio) / ratio; // no seams between cells
  const fill = (name, runs, low, high) => {
    context.fillStyle = colours[name] ??= colour(name);
    const top = snap(low * row);
    for (let i = 0; i < runs.length; i += 2) {
      const left = snap(runs[i] * cell);
      context.fillRect(left, top, snap(runs[i + 1] * cell) - left, snap(high * row) - top);
    }
  };
  context.save();
  context.translate(MARGIN.left, MARGIN.top);
  fill("cell", [0, entry.length], 0, entry.queries);
  const square = entry.queries === entry.length;
  for (let at = 0; square && entry.causal && at < entry.queries; at++) {
    fill("future", [at + 1, entry.length], at, at + 1);
  }
  paintBelow(state, fill);
  paintPairs(context, state, fill);
  if (row >= 4 && cell >= 4) paintLines(context, entry, cell, row);
  if (state.show === "tiles") paintTiles(context, state, cell, row);
  if (state.show === "shards") paintBorders(context, state, cell, row);
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  context.strokeRect(0, 0, entry.length * cell, entry.queries * row);
  context.restore();
  paintAxes(context, entry, cell, row);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** Under the pairs: what tiles compute, what a cache holds, what shards have and fetch. */
function paintBelow(state, fill) {
  const { entry } = state;
  if (state.show === "tiles") {
    for (const [queries, keys] of entry.heads[state.head].tiles ?? []) {
      for (let i = 0; i < queries.length; i += 2) fill("computed", keys, queries[i], queries[i + 1]);
    }
  }
  for (let at = 0; state.show === "cache" && at < entry.queries; at++) {
    fill("kept", keptAfter(entry, at) ?? [], at, at + 1);
  }
  for (const part of (state.show === "shards" && shardsOf(entry, state.ranks)) || []) {
    fill("own", part.own, part.own[0], part.own[1]);
    fill("fetched", part.fetched, part.own[0], part.own[1]);
  }
}

/** The pairs; what is pooled into larger clusters is the paler. */
function paintPairs(context, state, fill) {
  const { rows, levels } = state.entry.heads[state.head];
  rows.forEach((runs, at) => {
    if (!levels) return fill("read", runs, at, at + 1);
    levels[at].forEach((level, i) => {
      context.globalAlpha = LEVEL_SHADE ** level;
      fill("read", runs.slice(2 * i, 2 * i + 2), at, at + 1);
    });
    context.globalAlpha = 1;
  });
}

function paintLines(context, entry, cell, row) {
  context.fillStyle = colour("paper");
  for (let at = 1; at < entry.length; at++) context.fillRect(at * cell - 0.25, 0, 0.5, entry.queries * row);
  for (let at = 1; at < entry.queries; at++) context.fillRect(0, at * row - 0.25, entry.length * cell, 0.5);
}

function paintTiles(context, state, cell, row) {
  context.strokeStyle = colour("tile");
  context.lineWidth = 1;
  for (const [queries, keys] of state.entry.heads[state.head].tiles ?? []) {
    for (let i = 0; i < queries.length; i += 2) {
      for (let j = 0; j < keys.length; j += 2) {
        context.strokeRect(
          keys[j] * cell, queries[i] * row,
          (keys[j + 1] - keys[j]) * cell, (queries[i + 1] - queries[i]) * row,
        );
      }
    }
  }
}

function paintBorders(context, state, cell, row) {
  context.fillStyle = colour("tile");
  for (const part of shardsOf(state.entry, state.ranks) ?? []) {
    if (part.rank) context.fillRect(0, part.own[0] * row - 0.75, state.entry.length * cell, 1.5);
  }
}

/** First and last position on both axes, and their names between. */
function paintAxes(context, entry, cell, row) {
  context.fillStyle = colour("muted");
  context.textBaseline = "alphabetic";
  const wide = entry.length * cell;
  const high = entry.queries * row;
  const say = (text, x, align) => {
    context.textAlign = align;
    context.fillText(text, x, -7);
  };
  context.save();
  context.translate(MARGIN.left, MARGIN.top);
  say("0", 0, "left");
  say("key \u2192", wide / 2, "center");
  say(String(entry.length - 1), wide, "right");
  context.rotate(-Math.PI / 2);
  say("0", 0, "right");
  if (high > 110) say("\u2190 query", -high / 2, "center");
  say(String(entry.queries - 1), -high, "left");
  context.restore();
}

/** The chosen row or column, over the picture of all. */
function paintChosen(canvas, picture, state, at) {
  const context = canvas.getContext("2d");
  context.putImageData(picture, 0, 0);
  const { entry, head } = state;
  const { cell, row } = maskSizes(entry, canvas.parentElement.clientWidth);
  const isRow = state.look === "query";
  const long = isRow ? entry.length * cell : entry.queries * row;
  const step = isRow ? row : cell;
  const thick = Math.max(step, 5);
  const start = Math.min((at + 0.5) * step - thick / 2, (isRow ? entry.queries : entry.length) * step - thick);
  const bar = (from, to, low, high) =>
    isRow ? context.fillRect(from, low, to - from, high - low)
          : context.fillRect(low, from, high - low, to - from);
  context.save();
  context.translate(MARGIN.left, MARGIN.top);
  const first = Math.max(0, start);
  context.fillStyle = colour("row");
  bar(0, long, first, first + thick);
  context.fillStyle = colour("read");
  const runs = isRow ? entry.heads[head].rows[at] : readersOf(entry, head, at);
  const along = isRow ? cell : row;
  for (let i = 0; i < runs.length; i += 2) bar(runs[i] * along, runs[i + 1] * along, first, first + thick);
  context.fillStyle = colour("chosen");
  bar(0, long, first - 1.5, first);
  bar(0, long, first + thick, first + thick + 1.5);
  bar(-7, -1, first - 1.5, first + thick + 1.5);
  context.restore();
}

/** The query or key under a point of the mask. */
function maskPlace(canvas, state, x, y) {
  const { cell, row } = maskSizes(state.entry, canvas.parentElement.clientWidth);
  const { queries, length } = state.entry;
  const at = state.look === "query" ? Math.floor((y - MARGIN.top) / row) : Math.floor((x - MARGIN.left) / cell);
  return Math.max(0, Math.min(at, (state.look === "query" ? queries : length) - 1));
}

// -- the image ------------------------------------------------------------------------------------

/** Where tokens stand in the picture: text in rows above, frames side by side. */
function imagePlaces(entry, width) {
  const { frames, height, width: columns, text } = entry.canvas;
  const across = Math.min(frames, frames === 4 ? 2 : 3);
  const unit = (width - 2) / (columns * across + 0.6 * (across - 1));
  const textRows = Math.ceil(text / columns);
  const label = 18;
  const top = text ? label + textRows * unit + label : label;
  const deep = Math.ceil(frames / across) * (height * unit + label) - label;
  const corner = (token) => {
    if (token < text) return [1 + (token % columns) * unit, label + Math.floor(token / columns) * unit];
    const pixel = token - text;
    const frame = Math.floor(pixel / (height * columns));
    const inside = pixel % (height * columns);
    const x = (frame % across) * (columns + 0.6) + (inside % columns);
    const y = Math.floor(inside / columns) * unit + Math.floor(frame / across) * (height * unit + label);
    return [1 + x * unit, top + y];
  };
  return { unit, corner, label, top, high: top + deep + 2 };
}

/** The key at the place of a query. */
const ownKey = (entry, query) => (entry.ownKeys ? entry.ownKeys[query] : query);

function paintImage(canvas, state, at) {
  const { entry, head } = state;
  const { context } = prepare(canvas, (wide) => imagePlaces(entry, wide).high);
  const places = imagePlaces(entry, canvas.parentElement.clientWidth);
  const isQuery = state.look === "query";
  const runs = isQuery ? entry.heads[head].rows[at] : readersOf(entry, head, at);
  const read = new Set();
  for (let i = 0; i < runs.length; i += 2) {
    for (let one = runs[i]; one < runs[i + 1]; one++) read.add(isQuery ? one : ownKey(entry, one));
  }
  const below = isQuery ? belowOf(state, at) : [];
  const chosen = isQuery ? ownKey(entry, at) : at;
  for (let token = 0; token < entry.length; token++) {
    const [x, y] = places.corner(token);
    const under = below.find(([, keys]) => has(keys, token));
    context.fillStyle = colour(read.has(token) ? "read" : under ? under[0] : "cell");
    context.fillRect(x, y, places.unit, places.unit);
    context.strokeStyle = colour("line");
    context.lineWidth = 0.75;
    context.strokeRect(x, y, places.unit, places.unit);
  }
  const [x, y] = places.corner(chosen);
  context.fillStyle = colour("chosen");
  const inset = read.has(chosen) ? places.unit * 0.2 : 1;
  context.fillRect(x + inset, y + inset, places.unit - 2 * inset, places.unit - 2 * inset);
  context.lineWidth = 2;
  context.strokeStyle = colour("chosen");
  context.strokeRect(x, y, places.unit, places.unit);
  nameParts(context, entry, places);
}

/** Which keys lie under those that a query reads: of its tile, its cache, its shard. */
function belowOf(state, at) {
  const { entry } = state;
  if (state.show === "tiles") {
    return (tilesOf(entry, state.head, "query", at) ?? []).map(([, keys]) => ["computed", keys]);
  }
  if (state.show === "cache") return [["kept", keptAfter(entry, at) ?? []]];
  if (state.show === "shards") {
    const part = (shardsOf(entry, state.ranks) ?? []).find(({ own }) => has(own, at));
    return part ? [["own", part.own], ["fetched", part.fetched]] : [];
  }
  return [];
}

function nameParts(context, entry, places) {
  const { frames, height, width, text } = entry.canvas;
  context.fillStyle = colour("muted");
  context.textAlign = "left";
  if (text) context.fillText(`${text} tokens of text`, 1, places.label - 6);
  for (let frame = 0; frame < frames; frame++) {
    const [x, y] = places.corner(text + frame * height * width);
    context.fillText(frames > 1 ? `frame ${frame}` : `${height} \u00d7 ${width} pixels`, x, y - 6);
  }
}

/** The query or key whose place is nearest to a point of the image. */
function imagePlace(canvas, state, x, y) {
  const { entry } = state;
  const places = imagePlaces(entry, canvas.parentElement.clientWidth);
  const total = state.look === "query" ? entry.queries : entry.length;
  let best = 0;
  let least = Infinity;
  for (let at = 0; at < total; at++) {
    const [left, top] = places.corner(state.look === "query" ? ownKey(entry, at) : at);
    const away = (left + places.unit / 2 - x) ** 2 + (top + places.unit / 2 - y) ** 2;
    if (away < least) [best, least] = [at, away];
  }
  return best;
}
