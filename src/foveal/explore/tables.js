
// -- tables: what the library has written down, looked up; no geometry is worked out here ---------
// Positions are runs, [low, high, low, high, ...], `high` being the first beyond each.

const number = new Intl.NumberFormat("en");

/** The tables of the page: base 64 of deflated JSON. */
async function readTables() {
  const text = atob(document.getElementById("tables").textContent.trim());
  const bytes = Uint8Array.from(text, (one) => one.charCodeAt(0));
  const open = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(open).json();
}

function has(runs, at) {
  for (let i = 0; i < runs.length; i += 2) if (at >= runs[i] && at < runs[i + 1]) return true;
  return false;
}

function count(runs) {
  let total = 0;
  for (let i = 0; i < runs.length; i += 2) total += runs[i + 1] - runs[i];
  return total;
}

/** Runs of the positions below `length` for which `holds` is true. */
function runsOf(length, holds) {
  const runs = [];
  for (let at = 0; at < length; at++) {
    if (!holds(at)) continue;
    if (runs.length && runs[runs.length - 1] === at) runs[runs.length - 1] = at + 1;
    else runs.push(at, at + 1);
  }
  return runs;
}

/** Adjacent runs as one: of pooled keys there is a run for each level. */
function joined(runs) {
  const found = [];
  for (let i = 0; i < runs.length; i += 2) {
    if (found.length && found[found.length - 1] === runs[i]) found[found.length - 1] = runs[i + 1];
    else found.push(runs[i], runs[i + 1]);
  }
  return found;
}

const readersOf = (entry, head, key) =>
  runsOf(entry.queries, (query) => has(entry.heads[head].rows[query], key));

/** Tiles, [queries, keys] each, that a query or a key stands in; null where none are told. */
function tilesOf(entry, head, look, at) {
  const { tiles } = entry.heads[head];
  return tiles && tiles.filter((tile) => has(tile[look === "query" ? 0 : 1], at));
}

/** What a cache holds after a token: runs, or null where tokens do not come one at a time there. */
function keptAfter(entry, at) {
  return entry.keeps && at >= entry.keeps.first ? entry.keeps.runs[at - entry.keeps.first] : null;
}

/** The last token after which a cache still holds a key; -1 where it never does. */
function keptUntil(entry, key) {
  for (let at = entry.queries - 1; at >= entry.keeps.first; at--) {
    if (has(keptAfter(entry, at), key)) return at;
  }
  return -1;
}

/** Shards of a number of ranks: own tokens and those fetched from others, as runs. */
function shardsOf(entry, ranks) {
  const parts = entry.needs && entry.needs[ranks];
  return parts && parts.map(([own, read], rank) => ({
    rank, own, read, fetched: runsOf(entry.length, (at) => has(read, at) && !has(own, at)),
  }));
}

/** The most of a list of numbers, 0 of none. */
const most = (numbers) => numbers.reduce((a, b) => Math.max(a, b), 0);
