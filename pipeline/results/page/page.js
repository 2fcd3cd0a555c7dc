// Reads window.RETRIEVED (data.js): target -> clips, captions and, for each run, ranks and top ten of every query.
const SHOWN = 300; // queries in the list at once: a full test set holds thousands
const VERDICTS = { right: "✓ right", same: "≈ same caption", wrong: "✗ wrong" };
let queries = []; // of the chosen target and direction, filtered and ordered: indices
let chosen = null;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function options(select, values, wanted) {
  select.replaceChildren(...values.map((value) => new Option(value, value)));
  select.value = values.includes(wanted) ? wanted : values[0];
}

const target = () => window.RETRIEVED[at("target").value];
const direction = () => at("direction").value;
const runOf = (side) => at(`run-${side}`).value;
const ranked = (side) => target().runs[runOf(side)][direction()];
const rankOf = (side, query) => ranked(side).rank[query];

function captionsOf(clip) {
  const { captions, audio_of_text: owner } = target();
  return captions.filter((_, text) => owner[text] === clip);
}

const isText = () => direction() === "t2a";
const nameOf = (query) => (isText() ? target().captions[query] : target().keys[query]);

// How much better run A answers a query than run B, as a difference of reciprocal ranks.
const lead = (query) => 1 / rankOf("a", query) - 1 / rankOf("b", query);

const playButton = (clip) => playButtonOf(target().keys[clip], captionsOf(clip)[0]);

function playButtonOf(key, title) {
  const button = element("button", undefined, "play");
  button.type = "button";
  button.dataset.key = key;
  button.dataset.title = title;
  button.setAttribute("aria-label", `Play ${button.dataset.key}`);
  button.addEventListener("click", () => toggle(button));
  mark(button);
  return button;
}

// --- the list of queries ---

function matches(query, words) {
  const texts = isText()
    ? [target().captions[query], target().keys[target().audio_of_text[query]]]
    : [target().keys[query], ...captionsOf(query)];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function tally() {
  const leads = queries.map(lead);
  const [a, b] = [leads.filter((value) => value > 0).length, leads.filter((value) => value < 0).length];
  for (const [side, count] of [["a", a], ["b", b]]) {
    at("tally").querySelector(`.${side}`).style.width = `${(100 * count) / Math.max(1, queries.length)}%`;
  }
  return [
    element("span", `${runOf("a")} ranks the right answer higher in ${a}`, "name-a"), ", ",
    element("span", `${runOf("b")} in ${b}`, "name-b"), `, level in ${queries.length - a - b}.`,
  ];
}

function list() {
  const count = isText() ? target().captions.length : target().keys.length;
  const words = at("filter").value.trim().toLowerCase();
  queries = [...Array(count).keys()].filter((query) => !words || matches(query, words));
  const order = at("order").value;
  if (order !== "given") queries.sort((a, b) => (order === "a" ? lead(b) - lead(a) : lead(a) - lead(b)));
  const more = queries.length > SHOWN ? `, the first ${SHOWN} of them listed` : "";
  at("count").replaceChildren(`${queries.length} of ${count} queries${more}. `, ...tally());
  queries = queries.slice(0, SHOWN);
  at("queries").replaceChildren(...queries.map((query) => {
    const item = element("li", isText() ? nameOf(query) : captionsOf(query)[0]);
    item.id = `query-${query}`;
    item.setAttribute("role", "option");
    const ranks = element("div", undefined, "ranks");
    for (const side of ["a", "b"]) {
      const wins = (side === "a" ? lead(query) : -lead(query)) > 0;
      ranks.append(element("span", `${side.toUpperCase()}: rank ${rankOf(side, query)}`, wins ? `wins ${side}` : ""));
    }
    item.append(ranks);
    item.addEventListener("click", () => choose(query));
    return item;
  }));
  choose(queries.includes(chosen) ? chosen : queries[0]);
}

// --- the answers of both runs ---

function choose(query) {
  chosen = query ?? null;
  for (const item of at("queries").children) item.setAttribute("aria-selected", String(item.id === `query-${chosen}`));
  at("lists").hidden = chosen === null;
  at("question").replaceChildren();
  if (chosen === null) {
    at("queries").removeAttribute("aria-activedescendant");
    for (const side of ["a", "b"]) at(`top-${side}`).replaceChildren();
    return;
  }
  const item = at(`query-${chosen}`);
  at("queries").setAttribute("aria-activedescendant", item.id);
  const [inside, box] = [item.getBoundingClientRect(), at("queries").getBoundingClientRect()]; // scrolls the list alone
  if (inside.top < box.top) at("queries").scrollTop -= box.top - inside.top;
  if (inside.bottom > box.bottom) at("queries").scrollTop += inside.bottom - box.bottom;

  const clip = isText() ? target().audio_of_text[chosen] : chosen;
  const texts = element("div");
  texts.append(...(isText() ? [nameOf(chosen)] : captionsOf(clip)).map((text, i) => element(i ? "div" : "strong", text)));
  texts.append(element("div", target().keys[clip], "key"));
  const question = element("div", undefined, "clip");
  question.append(playButton(clip), texts);
  at("question").append(question);
  for (const side of ["a", "b"]) show(side, clip);
}

function show(side, clip) {
  const { top, score } = ranked(side);
  at(`name-${side}`).textContent = `${side.toUpperCase()}: ${runOf(side)}`;
  const places = top[chosen].map((place) => (isText() ? place : target().audio_of_text[place]));
  const rank = rankOf(side, chosen);
  const tied = Number.isInteger(rank) ? "" : " (tied)";
  const beyond = tied + (places.includes(clip) ? "" : ", beyond these ten");
  // Another clip with the very caption of the query is no mistake that a listener could name.
  const asked = isText() ? [nameOf(chosen)] : captionsOf(clip);
  const isSame = (place) => (isText() ? captionsOf(place) : [target().captions[place]]).some((text) => asked.includes(text));
  at(`rank-${side}`).textContent = isText() ? `the right clip has rank ${rank}${beyond}` : `the best right caption has rank ${rank}${beyond}`;
  at(`top-${side}`).replaceChildren(...top[chosen].map((place, position) => {
    const isRight = places[position] === clip;
    const item = element("li", undefined, isText() ? "" : "text");
    const verdict = isRight ? "right" : isSame(place) ? "same" : "wrong";
    item.classList.add(verdict);
    item.append(element("span", String(position + 1), "place"));
    if (isText()) item.append(playButton(place));
    const text = element("span", isText() ? captionsOf(place)[0] : target().captions[place]);
    text.append(element("span", VERDICTS[verdict], "mark"));
    item.append(text, element("span", score[chosen][position].toFixed(3), "score"));
    return item;
  }));
}

function nameOrders() {
  for (const side of ["a", "b"]) at("order").querySelector(`[value=${side}]`).textContent = `${side.toUpperCase()} wins most: ${runOf(side)}`;
}

function chooseTarget() {
  const runs = Object.keys(target().runs);
  const wanted = (pattern) => runs.find((run) => pattern.test(run));
  options(at("run-a"), runs, wanted(/composed/) ?? runs.at(-1)); // with other names: the last against the first
  options(at("run-b"), runs, wanted(/finetune/));
  chosen = null;
  nameOrders();
  list();
}

function start() {
  at("queries").addEventListener("keydown", (event) => {
    if (queries.length === 0) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      toggle(at("question").querySelector(".play"));
      return;
    }
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -SHOWN, End: SHOWN }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    choose(queries[Math.min(Math.max(queries.indexOf(chosen) + step, 0), queries.length - 1)]);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.target.matches("input, select")) return;
    event.preventDefault();
    at("filter").focus();
  });
  at("target").addEventListener("change", chooseTarget);
  for (const id of ["direction", "order"]) at(id).addEventListener("change", () => { chosen = null; list(); });
  for (const id of ["run-a", "run-b"]) at(id).addEventListener("change", () => { nameOrders(); list(); });
  at("filter").addEventListener("input", list);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  options(at("target"), Object.keys(window.RETRIEVED));
  chooseTarget();
}

if (window.RETRIEVED) start();
else at("browser").replaceChildren(element("h2", "What is retrieved"), element("p", "The answers and the clips are next to this page, in data.js and audio/: open it in its own folder."));
