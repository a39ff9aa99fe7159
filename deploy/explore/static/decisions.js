// What a person decides about the selection. Nothing is trained here: a decision is a row of a table for the next run.
// What was decided on this page since it was opened is a column, so that points can be colored by it.

import { post } from "./data.js";

const DECIDED = { label: "labeled", refuse: "refused", test: "moved to test" };
const element = (id) => document.getElementById(id);

export function decided(data) {
  return { array: new Uint8Array(data.count), values: Object.values(DECIDED) };
}

// `changed` is called after each decision.
export function decisions(data, state, { attempt, say, changed }) {
  if (!data.decides) return;
  element("decide").hidden = false;
  element("who").value = data.who ?? "";
  element("classes").append(...(data.classes ?? []).map((name) => new Option("", name)));
  const history = []; // of each decision the rows and their codes before

  const note = (action, rows) => {
    const codes = data.columns.decided.array;
    if (action === "undo") {
      const last = history.pop();
      last?.rows.forEach((row, n) => { codes[row] = last.codes[n]; });
    } else {
      history.push({ rows, codes: rows.map((row) => codes[row]) });
      for (const row of rows) codes[row] = Object.keys(DECIDED).indexOf(action) + 1;
    }
    changed();
  };

  const send = async (action, more = {}) => {
    const rows = Array.from(state.selected);
    const said = { rows, who: element("who").value, why: element("why").value, label: element("label").value };
    const answer = await post(`/actions/${action}`, { ...said, ...more });
    element("warning").hidden = !answer.warnings;
    if (answer.warnings) {
      element("warning").querySelector("p").textContent = answer.warnings.join(" ");
      element("confirm").focus();
      say("Nothing is written yet.");
      return;
    }
    note(action, rows);
    say(answer.done);
  };
  element("decide").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(() => send(event.submitter?.value ?? "label"), "Writing …");
  });
  element("confirm").addEventListener("click", () => attempt(() => send("test", { confirmed: true }), "Writing …"));
  element("cancel").addEventListener("click", () => {
    element("warning").hidden = true;
    say("Nothing was written.");
  });
}
