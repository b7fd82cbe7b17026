"use strict";
// Three clicks: up, down, as it was. Cells without a number go last.
function turn(button) {
  const next = { up: "down", down: "" }[button.dataset.direction] ?? "up";
  for (const other of button.closest("table").querySelectorAll("button.sort")) delete other.dataset.direction;
  if (next) button.dataset.direction = next;
  return next;
}
function order(values, direction) {
  const places = values.map((_, place) => place);
  if (!direction) return places;
  const sign = direction === "up" ? 1 : -1;
  return places.sort((a, b) => {
    const missing = Number.isNaN(values[a]) - Number.isNaN(values[b]);
    if (missing || Number.isNaN(values[a])) return missing || a - b;
    return sign * (values[a] - values[b]) || a - b;
  });
}
const number = (cell) => (cell.dataset.n === undefined ? NaN : Number(cell.dataset.n));
const original = (cells) => [...cells].sort((a, b) => a.dataset.place - b.dataset.place);

// The table of architectures: a row's label orders the columns by that row.
for (const button of document.querySelectorAll("#costs button.sort")) {
  button.addEventListener("click", () => {
    const row = button.closest("tr");
    const places = order(original(row.querySelectorAll("[data-place]")).map(number), turn(button));
    for (const line of row.closest("table").rows) {
      const cells = original(line.querySelectorAll("[data-place]"));
      if (cells.length) line.append(...places.map((place) => cells[place]));
    }
  });
}
// The table of runs: a heading orders the rows by that column.
for (const button of document.querySelectorAll("#runs button.sort")) {
  button.addEventListener("click", () => {
    const column = button.closest("th").cellIndex;
    const body = button.closest("table").tBodies[0];
    const lines = original(body.rows);
    const places = order(lines.map((line) => number(line.cells[column])), turn(button));
    body.append(...places.map((place) => lines[place]));
  });
}
// The legend of the curves: a click hides a run in all of them.
for (const button of document.querySelectorAll(".toggles button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const curve of document.querySelectorAll(`g.${button.dataset.curve}`)) curve.classList.toggle("hidden", !shown);
  });
}
// Rows that are equal in all columns are folded.
for (const button of document.querySelectorAll("button.fold")) {
  button.addEventListener("click", () => {
    const all = document.querySelector("#costs").classList.toggle("all");
    button.setAttribute("aria-expanded", String(all));
    button.textContent = button.textContent.replace(/^\w+/, all ? "Hide" : "Show");
    hints();
  });
}
for (const button of document.querySelectorAll("button.log")) {
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(document.body.classList.toggle("log-axes")));
  });
}
// A table that is wider than the window says so, and is shaded on the right until its end is reached.
function hints() {
  for (const box of document.querySelectorAll(".scroll")) {
    const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("more", rest > 1);
    box.previousElementSibling.hidden = box.scrollWidth <= box.clientWidth + 1;
  }
}
for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", hints, { passive: true });
addEventListener("resize", hints);
hints();
