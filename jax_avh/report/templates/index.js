// Each heading's button sorts the table by its column, and again in the other direction; empty cells stay last.
"use strict";
const table = document.getElementById("verdicts");
const headings = [...table.tHead.rows[0].cells];
const collator = new Intl.Collator(undefined, { numeric: true });

function sortBy(column, kind) {
  const heading = headings[column];
  const first = kind === "number" ? "descending" : "ascending"; // the most suspicious first
  const second = kind === "number" ? "ascending" : "descending";
  const order = heading.getAttribute("aria-sort") === first ? second : first;
  const sign = order === "ascending" ? 1 : -1;
  const keyed = [...table.tBodies[0].rows].map((row) => {
    const cell = row.cells[column];
    return { row, key: kind !== "text" ? cell.dataset.value : cell.textContent.trim() };
  });
  keyed.sort((a, b) => {
    if (!a.key || !b.key) return Number(!a.key) - Number(!b.key);
    return sign * (kind !== "text" ? a.key - b.key : collator.compare(a.key, b.key));
  });
  table.tBodies[0].append(...keyed.map(({ row }) => row));
  for (const other of headings) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", order);
}

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => sortBy(button.closest("th").cellIndex, button.dataset.kind));
}
