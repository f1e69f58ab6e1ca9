"use strict";
// Copying of commands, tables as files, folded sections that a link leads to, and lists of trials when opened.

document.documentElement.classList.add("scripted");

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Firefox and older browsers keep the clipboard from pages without a server: there the text is selected and copied.
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch {
    window.getSelection().selectAllChildren(code);
    if (!document.execCommand("copy")) return "Press Ctrl+C";
  }
  return "Copied";
}

for (const button of document.querySelectorAll("button.copy")) {
  button.setAttribute("aria-live", "polite");
  button.addEventListener("click", async () => {
    button.textContent = await copy(button.parentElement.querySelector("code"));
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

function asCsv({ columns, rows }) {
  const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return [columns, ...rows].map((row) => `${row.map((value) => quoted(String(value ?? ""))).join(",")}\r\n`).join("");
}

// Links that make their file when they are followed.
function downloads(name, table) {
  const line = element("p", undefined, "downloads");
  const kinds = [["csv", "text/csv", asCsv], ["json", "application/json", (all) => JSON.stringify(all, null, 1)]];
  for (const [suffix, type, text] of kinds) {
    const link = element("a", suffix.toUpperCase());
    link.download = `${name}.${suffix}`;
    link.href = "#";
    link.setAttribute("aria-label", `Save this table as ${suffix.toUpperCase()}`);
    link.addEventListener("click", () => {
      URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(new Blob([text(table)], { type: `${type};charset=utf-8` }));
    });
    line.append(link, " ");
  }
  return line;
}

for (const data of document.querySelectorAll("script[data-table]")) {
  data.before(downloads(data.dataset.table, JSON.parse(data.textContent)));
}

// A link to a folded section opens it.
function unfold() {
  const target = window.location.hash && document.getElementById(decodeURIComponent(window.location.hash.slice(1)));
  if (!(target instanceof HTMLDetailsElement)) return;
  target.open = true;
  target.scrollIntoView();
}
window.addEventListener("hashchange", unfold);
unfold();

function trialTable(table) {
  const part = element("div");
  const head = element("p");
  head.append(element("code", table.run));
  if (table.same.length) head.append(` with ${table.same.join(", ")}`);
  const scroll = element("div", undefined, "scroll");
  scroll.tabIndex = 0;
  const grid = element("table", undefined, "compact");
  const header = grid.createTHead().insertRow();
  table.columns.forEach((name, i) => header.append(element("th", name, i < table.given ? "" : "outcome")));
  const body = grid.createTBody();
  for (const row of table.rows) {
    const line = body.insertRow();
    row.forEach((cell, i) => { line.append(element("td", cell, i === 0 ? "key" : "n")); });
  }
  scroll.append(grid);
  part.append(head, scroll, downloads("trials", { columns: table.columns, rows: table.rows }));
  return part;
}

for (const details of document.querySelectorAll("details.trials")) {
  details.addEventListener("toggle", () => {
    const tables = JSON.parse(document.getElementById(details.dataset.of).textContent);
    tables.forEach((table) => details.append(trialTable(table)));
  }, { once: true });
}
