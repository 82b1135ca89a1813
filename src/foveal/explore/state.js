
// -- state: what is chosen, kept in the address; nothing of an address is trusted ------------------

const LOOKS = ["query", "key"];
const SHOWS = ["nothing", "tiles", "cache", "shards"];

/** The number of the entry for option values: the last option changes fastest. */
function entryOf(family, values) {
  let at = 0;
  for (const [name, known] of family.options) at = at * known.length + known.indexOf(values[name]);
  return family.entries[at];
}

/** State from a fragment: whatever is missing or unknown there is as at first. */
function parseState(tables, fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const pick = (name, known, otherwise) =>
    known.includes(given.get(name)) ? given.get(name) : otherwise;
  const names = tables.families.map((one) => one.name);
  const family = tables.families[names.indexOf(pick("pattern", names, names[0]))];
  const state = { family, values: {} };
  for (const [name, known] of family.options) state.values[name] = pick(name, known, known[0]);
  state.look = pick("look", LOOKS, "query");
  state.show = pick("show", SHOWS, "nothing");
  state.ranks = pick("ranks", tables.ranks.map(String), String(tables.ranks[1]));
  const whole = (name) => (/^\d{1,6}$/.test(given.get(name) ?? "") ? Number(given.get(name)) : null);
  state.head = whole("head") ?? 0;
  state.at = whole("at");
  return fitState(state);
}

/** The state with numbers that the entry has; a place near the middle where none is chosen. */
function fitState(state) {
  const entry = entryOf(state.family, state.values);
  state.entry = entry;
  if (entry.error) return state;
  state.head = Math.min(state.head, entry.heads.length - 1);
  if (!entry.needs?.[state.ranks]) state.ranks = Object.keys(entry.needs ?? {}).pop() ?? state.ranks;
  const total = state.look === "query" ? entry.queries : entry.length;
  state.at = Math.min(state.at ?? Math.floor(total * 0.6), total - 1);
  return state;
}

function formatState(state) {
  const said = new URLSearchParams({ pattern: state.family.name, ...state.values });
  said.set("look", state.look);
  if (state.at !== null) said.set("at", state.at);
  if (state.show !== "nothing") said.set("show", state.show);
  if (state.show === "shards") said.set("ranks", state.ranks);
  if (state.head) said.set("head", state.head);
  return "#" + said;
}
