// Mistakes: the confusion matrix, whose cells open their images, the worst answers, and what the release had right.

import { ask, text } from "./data.js";
import { describe, thumbnails, tile } from "./panel.js";

const WORST = 40;
const element = (id) => document.getElementById(id);

// The labeled images that are judged: those of the test, or without any the labeled ones at all.
export function judged(data) {
  const { label, prediction, split } = data.columns;
  const answered = (row) => label.array[row] && prediction.array[row];
  const rows = Uint32Array.from({ length: data.count }, (_, row) => row).filter(answered);
  const test = split ? rows.filter((row) => text(split, row) === "test") : rows;
  return { rows: test.length ? test : rows, test: test.length > 0 };
}

export function cellOf(data, rows, of) {
  const { label, prediction } = data.columns;
  return rows.filter((row) => label.array[row] === label.array[of] && text(prediction, row) === text(prediction, of));
}

export function showMistakes(data, open, select) {
  if (!data.columns.label || !data.columns.prediction) return;
  const { rows, test } = judged(data);
  const { label, prediction, champion } = data.columns;
  const wrong = rows.filter((row) => text(label, row) !== text(prediction, row));
  const share = rows.length ? ((100 * (rows.length - wrong.length)) / rows.length).toFixed(1) : "0";
  element("judged").textContent = rows.length ? `${rows.length.toLocaleString("en")} labeled ${test ? "test images" : "images"}, ${share} % answered rightly.` : "No labeled image has an answer.";
  matrix(data, rows, select);
  flips(data, rows, champion, select);
  worst(data, wrong, open);
}

function matrix(data, rows, select) {
  const { label, prediction } = data.columns;
  const names = [...new Set(Array.from(rows).flatMap((row) => [text(label, row), text(prediction, row)]))].sort();
  const cells = new Map();
  for (const row of rows) {
    const key = JSON.stringify([text(label, row), text(prediction, row)]);
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(row);
  }
  const most = Math.max(1, ...[...cells.values()].map((cell) => cell.length));
  const table = document.createElement("table");
  const head = (content, scope) => Object.assign(document.createElement("th"), { textContent: content, scope });
  const caption = document.createElement("caption");
  caption.textContent = "Rows: class. Columns: prediction.";
  table.append(caption);
  const first = table.insertRow();
  first.append(head("", "col"), ...names.map((name) => head(name, "col")));
  for (const actual of names) {
    const line = table.insertRow();
    line.append(head(actual, "row"));
    for (const answer of names) {
      const cell = cells.get(JSON.stringify([actual, answer])) ?? [];
      const place = line.insertCell();
      if (!cell.length) continue;
      const button = document.createElement("button");
      button.textContent = cell.length.toLocaleString("en");
      button.setAttribute("aria-label", `class ${actual}, predicted ${answer}: ${cell.length}`);
      const color = actual === answer ? "var(--accent)" : "var(--bad)";
      button.style.background = `color-mix(in srgb, ${color} ${Math.round(6 + (30 * cell.length) / most)}%, var(--ground))`;
      button.addEventListener("click", () => select(Uint32Array.from(cell), `of class ${actual}, predicted ${answer}`));
      place.append(button);
    }
  }
  element("confusion").replaceChildren(table);
}

function flips(data, rows, champion, select) {
  const place = element("flips");
  place.replaceChildren();
  if (!champion || !rows.some((row) => champion.array[row])) {
    place.textContent = "No release to compare with.";
    return;
  }
  const { label, prediction } = data.columns;
  const right = (column, row) => text(column, row) === text(label, row);
  const asked = rows.filter((row) => champion.array[row]);
  const lost = asked.filter((row) => right(champion, row) && !right(prediction, row));
  const gained = asked.filter((row) => !right(champion, row) && right(prediction, row));
  for (const [found, words] of [[lost, "that the release had right and the candidate has wrong"], [gained, "that the candidate has right and the release had wrong"]]) {
    const button = document.createElement("button");
    button.textContent = `${found.length.toLocaleString("en")} ${words}`;
    button.addEventListener("click", () => select(found, words));
    place.append(button);
  }
}

async function worst(data, wrong, open) {
  const sure = data.columns.label_confidence.array;
  const rows = Array.from(wrong).sort((one, other) => (sure[one] || 0) - (sure[other] || 0)).slice(0, WORST);
  const found = rows.length ? await ask(`/details?rows=${rows.join(",")}`) : [];
  element("worst").replaceChildren(...found.map((one, n) => {
    const line = document.createElement("div");
    line.className = "mistake";
    const [picture] = thumbnails(data, [rows[n]], open);
    const said = document.createElement("div");
    const words = document.createElement("p");
    words.textContent = `class ${one.label}, predicted ${one.prediction} with ${(100 * one.confidence).toFixed(0)} %`;
    const near = document.createElement("div");
    near.className = "grid";
    near.append(...(one.neighbors ?? []).slice(0, 3).map((other) => {
      const drawn = tile(data, other, "div");
      drawn.setAttribute("role", "img");
      drawn.setAttribute("aria-label", `near: ${describe(data, other)}`);
      drawn.title = describe(data, other);
      return drawn;
    }));
    said.append(words, near);
    line.append(picture, said);
    return line;
  }));
  if (!rows.length) element("worst").textContent = "None.";
}
