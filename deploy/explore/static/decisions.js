// What a person decides about the selection. Nothing is trained here: a decision is a row of a table for the next run.

import { post } from "./data.js";

const element = (id) => document.getElementById(id);

export function decisions(data, state, { attempt, say }) {
  if (!data.decides) return;
  element("decide").hidden = false;
  element("who").value = data.who ?? "";
  element("classes").append(...(data.classes ?? []).map((name) => new Option("", name)));

  const send = async (action, more = {}) => {
    const said = { rows: Array.from(state.selected), who: element("who").value, why: element("why").value, label: element("label").value };
    const answer = await post(`/actions/${action}`, { ...said, ...more });
    element("warning").hidden = !answer.warnings;
    if (answer.warnings) {
      element("warning").querySelector("p").textContent = answer.warnings.join(" ");
      element("confirm").focus();
      say("Nothing is written yet.");
      return;
    }
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
