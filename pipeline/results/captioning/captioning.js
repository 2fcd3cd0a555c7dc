// Keeps every caption in the browser as it is typed, by page and clip, and saves them as a list of the adapter folder.
const PAGE = `captions of ${document.body.dataset.page}`;
const COLUMNS = ["file_name", "caption", "source_name", "source_id"];
const clips = [...document.querySelectorAll("#clips li")];
const boxes = clips.map((clip) => clip.querySelector("textarea"));
const fileOf = (box) => box.closest("li").dataset.file;

// --- what the browser keeps: null where it keeps nothing, as some do for files from disk ---

function kept(name) {
  try {
    return localStorage.getItem(`${PAGE}: ${name}`);
  } catch {
    return null;
  }
}

function keep(name, text) {
  try {
    localStorage.setItem(`${PAGE}: ${name}`, text);
    return true;
  } catch {
    return false;
  }
}

// --- the list ---

const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

function list() {
  const rows = boxes.filter((box) => box.value.trim()).map((box) => {
    const { file, name, sourceId } = box.closest("li").dataset;
    return [file, box.value.trim(), name, sourceId];
  });
  return [COLUMNS, ...rows].map((row) => `${row.map(quoted).join(",")}\r\n`).join("");
}

function rowsOf(text) {
  const rows = [[]];
  const fields = /(?:"((?:[^"]|"")*)"|([^,\r\n]*))(,|\r?\n|$)/gy;
  for (const [, inQuotes, plain, end] of text.replace(/^\ufeff/, "").matchAll(fields)) {
    rows.at(-1).push(inQuotes?.replaceAll('""', '"') ?? plain);
    if (end === "") break;
    if (end !== ",") rows.push([]);
  }
  return rows;
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\ufeff", list()], { type: "text/csv" })); // the mark tells Excel that it is UTF-8
  link.download = "captions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = list();
  keep("saved", saved);
  show();
}

async function read(file) {
  const [header, ...rows] = rowsOf(await file.text());
  const [name, caption] = [header.indexOf("file_name"), header.indexOf("caption")];
  const captions = new Map(rows.map((row) => [row[name], row[caption]]));
  const found = boxes.filter((box) => captions.has(fileOf(box)));
  for (const box of found) {
    box.value = captions.get(fileOf(box));
    keep(fileOf(box), box.value);
  }
  show();
  at("state").textContent += ` ${found.length} captions read from ${file.name}.`;
}

// --- the page ---

let saved = kept("saved") ?? "";

function show() {
  const done = boxes.filter((box) => box.value.trim()).length;
  boxes.forEach((box, number) => clips[number].classList.toggle("done", box.value.trim() !== ""));
  const state = done === 0 ? "" : saved === list() ? " All are in the last captions.csv." : " Not in a captions.csv yet: save.";
  at("state").textContent = `${done} of ${boxes.length} captioned.${state}`;
}

function go(number) {
  if (number < 0) return;
  if (number >= boxes.length) {
    at("save").focus();
    return;
  }
  boxes[number].focus();
  clips[number].scrollIntoView({ block: "nearest" });
  const button = clips[number].querySelector(".play");
  if (button.getAttribute("aria-pressed") !== "true") toggle(button);
}

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return; // Enter and Escape belong to the input method
  const number = clips.indexOf(document.activeElement.closest("#clips li"));
  const isInBox = document.activeElement.matches("textarea");
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "s") event.repeat || save();
  else if (event.altKey && event.key === "ArrowDown") go(number + 1);
  else if (event.altKey && event.key === "ArrowUp") go(number < 0 ? boxes.length - 1 : number - 1);
  else if (event.key === "Enter" && isInBox && !event.shiftKey) go(number + 1);
  else if (event.key === "Escape" && number >= 0) toggle(clips[number].querySelector(".play"));
  else return;
  event.preventDefault();
});

for (const box of boxes) {
  box.value = kept(fileOf(box)) ?? "";
  box.addEventListener("input", () => {
    at("warning").hidden = keep(fileOf(box), box.value);
    show();
  });
}
addEventListener("storage", (event) => { // the same page in another tab
  const box = boxes.find((one) => event.key === `${PAGE}: ${fileOf(one)}`);
  if (box) box.value = event.newValue ?? "";
  show();
});
addEventListener("beforeunload", (event) => {
  if (!at("warning").hidden && saved !== list()) event.preventDefault();
});
at("save").addEventListener("click", save);
at("file").addEventListener("change", () => at("file").files[0] && read(at("file").files[0]));
at("warning").hidden = keep("opened", "");
document.querySelectorAll(".play").forEach((button) => {
  mark(button);
  button.addEventListener("click", () => toggle(button));
});
show();
(boxes.find((box) => !box.value.trim()) ?? boxes[0]).focus();
