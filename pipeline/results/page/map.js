// The map of clips. Reads window.POOLS (data.js): by name, dots of three groups, and two lists of dots.

const GROUPS = ["unlabeled", "labeled", "held_out"]; // in drawing order: test clips are on top
const REACH = 24; // pixels from a dot at which a click still means it
const MARGIN = 12;
const map = { dots: [], places: [], chosen: null, hidden: new Set() };

const pool = () => window.POOLS[at("map-pool").value];
const nameOfGroup = (group) => (group === "held_out" ? pool().role : group);
const titleOf = (dot) => dot.captions[0] ?? dot.file;
const isShown = (number) => !map.hidden.has(map.dots[number].group);

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// A circle, a square or a triangle around (x, y): groups differ by shape as well as by colour.
function outline(group, x, y, r) {
  if (group === "labeled") return `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
  if (group === "held_out") return `M${x} ${y - 1.3 * r}l${1.3 * r} ${2.3 * r}h${-2.6 * r}z`;
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
}

function draw() {
  const size = at("map").clientWidth;
  at("map").setAttribute("viewBox", `0 0 ${size} ${size}`);
  const radius = size < 480 ? 2.5 : 3.5;
  const spread = size - 2 * MARGIN;
  map.places = map.dots.map(({ x, y }) => [MARGIN + x * spread, MARGIN + y * spread].map((place) => Math.round(place)));
  at("map").replaceChildren(...GROUPS.map((group) => {
    const marks = map.dots.flatMap((dot, number) => (dot.group === group && isShown(number) ? [outline(group, ...map.places[number], radius)] : []));
    return svg("path", { class: `dots ${group}`, d: marks.join("") });
  }), svg("path", { class: "ring", id: "map-ring" }));
  ring();
}

function ring() {
  const shown = map.chosen !== null && isShown(map.chosen);
  at("map-ring").setAttribute("d", shown ? outline("unlabeled", ...map.places[map.chosen], 9) : "");
}

function nearestDot(x, y, isWanted) {
  let [found, least] = [null, Infinity];
  map.places.forEach(([left, top], number) => {
    const distance = Math.hypot(left - x, top - y);
    if (distance < least && isShown(number) && isWanted(left - x, top - y)) [found, least] = [number, distance];
  });
  return { number: found, distance: least };
}

function chooseDot(number) {
  map.chosen = number;
  ring();
  const dot = map.dots[number];
  const texts = element("div");
  const [first, ...others] = dot.captions.length ? dot.captions : ["no caption"];
  texts.append(element("strong", first), ...others.map((text) => element("div", text)));
  texts.append(element("div", `${nameOfGroup(dot.group)}: ${pool().splits[dot.split]}, ${dot.file}`, "key"), element("div", dot.key, "key"));
  const clip = element("div", undefined, "clip");
  clip.append(playButtonOf(dot.key, titleOf(dot)), texts);
  const nearest = element("ul", undefined, "near");
  for (const [group, key, cosine] of dot.near) {
    const item = element("li", `${cosine.toFixed(3)} to the nearest ${nameOfGroup(group)} clip: `);
    const there = map.dots.findIndex((other) => other.key === key);
    item.append(there < 0 ? element("span", key, "key") : dotButton(there));
    nearest.append(item);
  }
  at("map-chosen").replaceChildren(clip, nearest);
}

// A button with a clip's caption or file, which chooses its dot.
function dotButton(number) {
  const button = element("button", titleOf(map.dots[number]), "link");
  button.type = "button";
  button.addEventListener("click", () => chooseDot(number));
  return button;
}

function listDots(id, numbers, cosine) {
  at(id).replaceChildren(...numbers.map((number) => {
    const dot = map.dots[number];
    const item = element("li");
    item.append(playButtonOf(dot.key, titleOf(dot)), dotButton(number), element("span", cosine(dot).toFixed(3), "score"));
    return item;
  }));
}

function choosePool() {
  map.dots = pool().dots;
  at("worst-title").textContent = `${pool().role} clips worst covered`.replace(/^./, (letter) => letter.toUpperCase());
  at("map-note").textContent = pool().note;
  at("map-groups").replaceChildren(...GROUPS.map((group) => {
    const label = element("label", undefined, `legend ${group}`);
    const box = Object.assign(element("input"), { type: "checkbox", checked: !map.hidden.has(group), value: group });
    box.addEventListener("change", () => { map.hidden[box.checked ? "delete" : "add"](group); draw(); });
    const mark = svg("svg", { viewBox: "0 0 14 14", "aria-hidden": "true" });
    mark.append(svg("path", { class: `dots ${group}`, d: outline(group, 7, 7, 4) }));
    label.append(box, mark, nameOfGroup(group));
    return label;
  }));
  const cosineTo = (dot, ...groups) => Math.max(...dot.near.filter(([group]) => groups.includes(group)).map(([, , cosine]) => cosine));
  listDots("worst", pool().worst, (dot) => cosineTo(dot, "unlabeled"));
  listDots("far", pool().far, (dot) => cosineTo(dot, "labeled", "held_out"));
  map.chosen = null;
  draw();
  chooseDot(pool().worst[0]);
}

function stepOnMap(event) {
  const inDirection = {
    ArrowRight: (x, y) => x > Math.abs(y), ArrowLeft: (x, y) => -x > Math.abs(y),
    ArrowDown: (x, y) => y > Math.abs(x), ArrowUp: (x, y) => -y > Math.abs(x),
  }[event.key];
  if (event.key === "Enter" || event.key === " ") toggle(at("map-chosen").querySelector(".play"));
  else if (inDirection) {
    const { number } = nearestDot(...map.places[map.chosen], inDirection);
    if (number !== null) chooseDot(number);
  } else return;
  event.preventDefault();
}

function startMap() {
  at("map").addEventListener("keydown", stepOnMap);
  at("map").addEventListener("click", (event) => {
    const box = at("map").getBoundingClientRect();
    const { number, distance } = nearestDot(event.clientX - box.left, event.clientY - box.top, () => true);
    if (number === null || distance > REACH) return;
    chooseDot(number);
    toggle(at("map-chosen").querySelector(".play"));
  });
  at("map-pool").addEventListener("change", choosePool);
  at("map-controls").addEventListener("submit", (event) => event.preventDefault());
  at("map-pool").parentElement.hidden = at("map-pool").options.length < 2;
  choosePool();
  new ResizeObserver(draw).observe(at("map"));
}

if (window.POOLS) startMap();
else {
  for (const id of ["map-controls", "map-panes", "map-lists"]) at(id).hidden = true;
  at("map-note").textContent = "The clips of the map are next to this page, in data.js and audio/: open it in its own folder.";
}
