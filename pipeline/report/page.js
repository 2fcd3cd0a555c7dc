"use strict";
// Reads window.RETRIEVED (data.js): target -> clips, captions and, for each run, ranks and top ten of every query.
const SHOWN = 300; // queries in the list at once: a full test set holds thousands
const at = (id) => document.getElementById(id);
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
const ranked = (run) => target().runs[run][direction()];

function captionsOf(clip) {
  const { captions, audio_of_text: owner } = target();
  return captions.filter((_, text) => owner[text] === clip);
}

function player(clip) {
  const audio = element("audio");
  audio.controls = true;
  audio.preload = "none";
  audio.src = `audio/${target().keys[clip]}.mp3`;
  audio.setAttribute("aria-label", target().keys[clip]);
  return audio;
}

const nameOf = (query) => (direction() === "t2a" ? target().captions[query] : target().keys[query]);

// How much better run A answers a query than run B, as a difference of reciprocal ranks.
const lead = (query) => 1 / ranked(at("run-a").value).rank[query] - 1 / ranked(at("run-b").value).rank[query];

function matches(query, words) {
  const texts = direction() === "t2a"
    ? [target().captions[query], target().keys[target().audio_of_text[query]]]
    : [target().keys[query], ...captionsOf(query)];
  return texts.some((text) => text.toLowerCase().includes(words));
}

function list() {
  const count = direction() === "t2a" ? target().captions.length : target().keys.length;
  const words = at("filter").value.trim().toLowerCase();
  queries = [...Array(count).keys()].filter((query) => !words || matches(query, words));
  const order = at("order").value;
  if (order !== "given") queries.sort((a, b) => (order === "a" ? lead(b) - lead(a) : lead(a) - lead(b)));
  const more = queries.length > SHOWN ? `, the first ${SHOWN} of them are listed; filter for others` : "";
  at("count").textContent = `${queries.length} of ${count} queries${more}`;
  queries = queries.slice(0, SHOWN);
  at("queries").replaceChildren(...queries.map((query) => {
    const item = element("li", nameOf(query));
    item.id = `query-${query}`;
    item.setAttribute("role", "option");
    const ranks = ["run-a", "run-b"].map((id) => ranked(at(id).value).rank[query]);
    item.append(element("div", `A: rank ${ranks[0]}, B: rank ${ranks[1]}`, "score"));
    item.addEventListener("click", () => choose(query));
    return item;
  }));
  choose(queries.includes(chosen) ? chosen : queries[0]);
}

function choose(query) {
  chosen = query ?? null;
  for (const item of at("queries").children) item.setAttribute("aria-selected", String(item.id === `query-${chosen}`));
  at("question").replaceChildren();
  for (const side of ["a", "b"]) {
    at(`name-${side}`).textContent = "";
    at(`top-${side}`).replaceChildren();
  }
  if (chosen === null) return;
  at("queries").setAttribute("aria-activedescendant", `query-${chosen}`);
  at(`query-${chosen}`).scrollIntoView({ block: "nearest" });
  const isText = direction() === "t2a";
  const clip = isText ? target().audio_of_text[chosen] : chosen;
  at("question").append(element("strong", nameOf(chosen)), element("div", target().keys[clip], "key"), player(clip));
  for (const side of ["a", "b"]) show(side, isText, clip);
}

function show(side, isText, clip) {
  const run = at(`run-${side}`).value;
  const { rank, top, score } = ranked(run);
  at(`name-${side}`).textContent = `${side.toUpperCase()}: ${run}, rank ${rank[chosen]}`;
  at(`top-${side}`).replaceChildren(...top[chosen].map((place, position) => {
    const found = isText ? place : target().audio_of_text[place];
    const isRight = found === clip;
    const item = element("li", undefined, isRight ? "right" : "");
    item.append(element("span", `${isRight ? "✓ right: " : ""}${isText ? captionsOf(place)[0] : target().captions[place]}`));
    item.append(element("span", ` ${score[chosen][position].toFixed(3)}`, "score"));
    if (isText) item.append(player(place));
    return item;
  }));
}

function chooseTarget() {
  const runs = Object.keys(target().runs);
  const wanted = (pattern) => runs.find((run) => pattern.test(run));
  options(at("run-a"), runs, wanted(/composed/));
  options(at("run-b"), runs, wanted(/finetune/));
  chosen = null;
  list();
}

at("queries").addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -SHOWN, End: SHOWN }[event.key];
  if (step === undefined || queries.length === 0) return;
  event.preventDefault();
  choose(queries[Math.min(Math.max(queries.indexOf(chosen) + step, 0), queries.length - 1)]);
});
at("target").addEventListener("change", chooseTarget);
for (const id of ["direction", "order"]) at(id).addEventListener("change", () => { chosen = null; list(); });
for (const id of ["run-a", "run-b"]) at(id).addEventListener("change", list);
at("filter").addEventListener("input", list);
at("controls").addEventListener("submit", (event) => event.preventDefault());

options(at("target"), Object.keys(window.RETRIEVED));
chooseTarget();
