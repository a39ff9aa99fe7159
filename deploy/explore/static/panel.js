// The panel: thumbnails of the selection, and what is known of one image. Everything that is not ours is text.

import { ask, text } from "./data.js";

const FIRST = 120; // thumbnails shown at once
const NAMES = { path: "path", sha256: "SHA-256", label: "class", prediction: "prediction", confidence: "confidence", label_confidence: "probability of its class", champion: "answer of the release", split: "split", state: "state", reason: "reason", message: "message", batch: "batch", novelty: "novelty", near_group: "near copies" };
const element = (id) => document.getElementById(id);

// A thumbnail cut from its sheet; a gray tile with words for what has no picture.
export function tile(data, row, kind = "button") {
  const { side, across } = data.sprites;
  const drawn = document.createElement(kind);
  drawn.className = "tile";
  const place = data.columns.tile.array[row];
  if (place) {
    const [sheet, cell] = [Math.floor((place - 1) / (across * across)), (place - 1) % (across * across)];
    drawn.style.backgroundImage = `url("/sheets/${sheet}?served=${data.served}")`;
    drawn.style.backgroundPosition = `-${(cell % across) * side}px -${Math.floor(cell / across) * side}px`;
  } else {
    drawn.classList.add("none");
    drawn.textContent = (data.columns.reason && text(data.columns.reason, row)?.replaceAll("_", " ")) || "no picture";
  }
  return drawn;
}

export function describe(data, row) {
  const said = (name) => (data.columns[name] ? text(data.columns[name], row) : null);
  const parts = [`image ${row}`];
  if (said("label")) parts.push(`class ${said("label")}`);
  if (said("prediction")) parts.push(`predicted ${said("prediction")}`);
  if (said("reason")) parts.push(said("reason"));
  return parts.join(", ");
}

export function thumbnails(data, rows, open, captions) {
  return [...rows].map((row, n) => {
    const button = tile(data, row);
    button.type = "button";
    button.dataset.row = row;
    button.setAttribute("aria-label", describe(data, row));
    button.title = describe(data, row);
    button.addEventListener("click", () => open(row));
    if (!captions) return button;
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = captions[n];
    figure.append(button, caption);
    return figure;
  });
}

// `leave` is called with a row that a person takes out of the selection.
export function showSelection(data, rows, why, open, leave, most = FIRST) {
  const count = rows.length;
  element("chosen").textContent = count ? `${count.toLocaleString("en")} selected${why ? ` ${why}` : ""}` : "Nothing is selected";
  element("counts").textContent = count ? shares(data, rows) : "Draw around points with the lasso, search, or drop a picture.";
  element("hint").hidden = !count;
  const shown = thumbnails(data, rows.subarray(0, most), open);
  shown.forEach((button, n) => {
    button.addEventListener("keydown", (event) => { if (event.key === "Delete") leave(rows[n]); });
    button.addEventListener("click", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.stopImmediatePropagation();
      leave(rows[n]);
    }, { capture: true });
  });
  element("grid").replaceChildren(...shown);
  element("more").hidden = count <= most;
  element("more").onclick = () => showSelection(data, rows, why, open, leave, most + 4 * FIRST);
}

function shares(data, rows) {
  const column = data.columns.label;
  if (!column) return "";
  const counts = new Map();
  for (const row of rows) counts.set(column.array[row], (counts.get(column.array[row]) ?? 0) + 1);
  const most = [...counts].sort((one, other) => other[1] - one[1]).slice(0, 6);
  return most.map(([code, count]) => `${code ? column.values[code - 1] : "no class"}: ${count.toLocaleString("en")}`).join(", ");
}

let turn = 0;

// `cell` is called with a row for the images in its cell of the confusion matrix.
export async function showImage(data, row, open, cell) {
  const mine = ++turn;
  const [[one], near] = await Promise.all([ask(`/details?rows=${row}`), ask(`/near?row=${row}`)]);
  if (mine !== turn) return;
  element("nothing").hidden = true;
  element("one").hidden = false;
  const full = element("full");
  full.hidden = !data.columns.tile.array[row] || one.state === "quarantined";
  full.src = full.hidden ? "data:," : `/picture?row=${row}`;
  full.alt = describe(data, row);
  const lines = Object.entries(NAMES).filter(([name]) => one[name] !== null && one[name] !== undefined && one[name] !== "");
  lines.push(...Object.keys(one.metadata ?? {}).map((name) => [`metadata.${name}`, name]));
  document.querySelector("#one tbody").replaceChildren(...lines.map(([name, title]) => {
    const line = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = title;
    const value = document.createElement("td");
    const said = name.startsWith("metadata.") ? one.metadata[title] : one[name];
    value.textContent = typeof said === "number" && !Number.isInteger(said) ? said.toFixed(3) : String(said);
    line.append(head, value);
    return line;
  }));
  const button = element("cell");
  button.hidden = !(one.label && one.prediction);
  button.textContent = `All of class ${one.label} that are predicted ${one.prediction}`;
  button.onclick = () => cell(row);
  const named = one.neighbors ?? [];
  element("labeled").replaceChildren(...(named.length ? thumbnails(data, named, open, named.map((other) => text(data.columns.label, other) ?? "")) : ["none"]));
  element("nearest").replaceChildren(...(near.rows.length ? thumbnails(data, near.rows, open, near.cosines.map((cosine) => cosine.toFixed(2))) : ["none"]));
}
