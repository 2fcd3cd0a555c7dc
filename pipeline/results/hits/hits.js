// Buttons of the page of hits: play, and copy the start and end of a hit in seconds, separated by a tab.
for (const button of document.querySelectorAll(".play")) {
  mark(button);
  button.addEventListener("click", () => toggle(button));
}

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.times);
      button.textContent = "Copied";
    } catch { // not allowed here: the seconds can be selected and copied by hand
      button.textContent = button.dataset.times.replace("\t", " – ");
      return;
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  });
}
