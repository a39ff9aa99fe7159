// The page: what is selected and how it is colored, and which part shows it.

import { choices, dark, legend, paint } from "./colors.js";
import { base64, load, post, rows } from "./data.js";
import { decided, decisions } from "./decisions.js";
import { placed, PointMap } from "./map.js";
import { cellOf, judged, showMistakes } from "./mistakes.js";
import { describe, showImage, showSelection, tile } from "./panel.js";

const element = (id) => document.getElementById(id);
const TABS = ["selection", "details", "mistakes"];

export function say(message, bad = false) {
  element("status").textContent = message;
  element("status").className = bad ? "bad" : "";
}

// Run what a person asked for; what fails is said on the page.
export async function attempt(work, message = "") {
  try {
    if (message) say(message);
    await work();
  } catch (error) {
    say(error.message, true);
  }
}

function showTab(name) {
  for (const tab of TABS) {
    const chosen = tab === name;
    element(tab).hidden = !chosen;
    element(`tab-${tab}`).setAttribute("aria-selected", String(chosen));
    element(`tab-${tab}`).tabIndex = chosen ? 0 : -1;
  }
}

async function start() {
  const data = await load();
  if (data.decides) data.columns.decided = decided(data);
  const state = { selected: new Uint32Array(), color: null, only: null };
  document.title = element("title").textContent = `Explore ${data.title}`;

  const select = (found, why) => {
    state.selected = found;
    map.select(found);
    showSelection(data, found, why, open, (row) => select(found.filter((other) => other !== row), why));
    showTab("selection");
    say(found.length ? `${found.length.toLocaleString("en")} images selected.` : "");
  };
  const open = (row) => attempt(async () => {
    map.focused = row;
    map.redraw();
    showTab("details");
    await showImage(data, row, open, (of) => select(cellOf(data, judged(data).rows, of), "in this cell of the confusion matrix"));
    say("");
  });
  const map = new PointMap(element("points"), element("overlay"), placed(data), {
    select,
    open,
    hover: (row, x, y) => hover(data, row, x, y),
    lasso: (on) => element("lasso").setAttribute("aria-pressed", String(on)),
  });

  const recolor = () => {
    const painted = paint(data, state.color);
    const codes = data.columns[state.color].array;
    const shown = state.only && Uint8Array.from(codes, (code) => (state.only.has(code) ? 1 : 0));
    map.show(painted.colors, shown);
    legend(element("legend"), state.color, painted, state.only, (code) => {
      const only = new Set(state.only ?? []);
      if (!only.delete(code)) only.add(code);
      state.only = only.size ? only : null;
      recolor();
    });
  };
  const colors = choices(data);
  element("color").append(...colors.map(([name, title]) => new Option(title, name)));
  element("color").addEventListener("change", () => {
    [state.color, state.only] = [element("color").value, null];
    recolor();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
  if (colors.length) {
    state.color = colors[0][0];
    recolor();
  } else {
    map.show(new Uint32Array(data.count).fill(dark() ? 0xffc8beb4 : 0xff6b5d4f), null);
    element("legend").hidden = true;
  }

  element("search").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = element("text").value;
    attempt(async () => select(await rows(`/search?text=${encodeURIComponent(wanted)}`), `whose path contains “${wanted}”`), "Searching …");
  });
  const like = (file) => attempt(async () => {
    const { rows: found, cosines } = await post("/find", { picture: await base64(file) });
    select(Uint32Array.from(found), "most like the picture, the nearest first");
    if (found.length) { await open(found[0]); showTab("selection"); }
    say(found.length ? `The nearest has a cosine of ${cosines[0].toFixed(3)}.` : "No image has a vector.");
  }, "Looking for images like it …");
  const list = (file) => attempt(async () => select(await rows("/list", { text: await file.text() }), `of the list ${file.name}`), "Reading the list …");
  const taken = (file) => (file && (/\.(csv|txt)$/i.test(file.name) ? list(file) : like(file)));
  for (const [id, take] of [["picture", like], ["list", list]]) {
    element(id).addEventListener("change", (event) => { if (event.target.files[0]) take(event.target.files[0]); event.target.value = ""; });
  }
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      element("drop").classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("drop", (event) => taken(event.dataTransfer.files[0]));
  document.addEventListener("paste", (event) => taken(event.clipboardData.files[0]));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    event.preventDefault();
    element("text").focus();
  });

  element("lasso").addEventListener("click", () => map.setLasso(!map.lassoing));
  element("visible").addEventListener("click", () => select(map.visible(), "in view"));
  element("reset").addEventListener("click", () => map.showAll());
  element("clear").addEventListener("click", () => select(new Uint32Array(), ""));
  TABS.forEach((name, n) => {
    element(`tab-${name}`).addEventListener("click", () => showTab(name));
    element(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: TABS.length - 1 }[event.key];
      if (!step) return;
      const next = TABS[(n + step) % TABS.length];
      showTab(next);
      element(`tab-${next}`).focus();
    });
  });
  showMistakes(data, open, select);
  element("tab-mistakes").hidden = !data.columns.prediction || !data.columns.label;
  decisions(data, state, { attempt, say, changed: recolor });
  showSelection(data, state.selected, "", open, () => {});
  say(`${data.count.toLocaleString("en")} images.`);
  window.explorer = { data, map, state, select }; // for tests and the curious
}

function hover(data, row, x, y) {
  const box = element("hover");
  box.hidden = row < 0;
  if (row < 0) return;
  if (box.dataset.row !== String(row)) {
    box.dataset.row = row;
    box.querySelector(".tile").replaceWith(tile(data, row, "div"));
    box.querySelector("p").textContent = describe(data, row);
  }
  const stage = element("stage");
  box.style.left = `${Math.min(x + 14, stage.clientWidth - box.offsetWidth - 4)}px`;
  box.style.top = `${Math.min(y + 14, stage.clientHeight - box.offsetHeight - 4)}px`;
}

attempt(start, "Loading …");
