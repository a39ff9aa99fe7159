// The example page: verifies the encoder with the bundle's golden images, then embeds the image that the user chooses.

const element = (id) => document.getElementById(id);
let encoder = null;
let turn = 0;

function showStatus(text, kind = "") {
  element("status").textContent = text;
  element("status").className = kind;
}

function tableRow(cells) {
  const row = document.createElement("tr");
  row.append(
    ...cells.map((text, column) => {
      const cell = document.createElement(column === 0 ? "th" : "td");
      if (column === 0) cell.scope = "row";
      cell.textContent = text;
      return cell;
    }),
  );
  return row;
}

function showGolden({ passed, allowed, images }) {
  const rows = images.map(({ name, cosine, maxAbs }) => [name, cosine.toFixed(7), maxAbs.toExponential(1)]);
  const limit = ["allowed", `≥ ${allowed.cosine_min}`, `≤ ${allowed.max_abs}`];
  element("golden-rows").replaceChildren(...rows.map(tableRow));
  element("golden-limit").replaceChildren(tableRow(limit));
  element("golden-result").textContent = passed
    ? `Passed: ${images.length} of ${images.length} images give the same vectors as the trained network.`
    : "Failed: this browser gives other vectors than the trained network.";
  element("golden-result").className = passed ? "good" : "bad";
  element("golden").hidden = false;
}

async function start() {
  const { load } = await import("./embed.js").catch((error) => {
    throw new Error(`${error.message}; copy the two files of onnxruntime-web into ort/, see README.md`);
  });
  encoder = await load("bundle/");
  const { name, dim } = encoder.card;
  element("model").textContent = `${name} (${encoder.id.slice(0, 12)}), ${dim} numbers per image`;
  const golden = await encoder.verify();
  showGolden(golden);
  if (!golden.passed) throw new Error("The golden images do not match, so this page does not embed any image.");
  element("file").disabled = false;
  showStatus("Ready.");
}

async function show(file) {
  if (element("file").disabled) return;
  const thisTurn = ++turn;
  element("answer").hidden = true;
  showStatus("Embedding …");
  try {
    const { vector, milliseconds } = await encoder.embed(file);
    if (thisTurn !== turn) return;
    URL.revokeObjectURL(element("shown").src);
    element("shown").src = URL.createObjectURL(file);
    element("name").textContent = file.name;
    element("vector").textContent = `${Array.from(vector.slice(0, 8), (value) => value.toFixed(4)).join(", ")} …`;
    element("pixels").textContent = `${milliseconds.pixels.toFixed(0)} ms`;
    element("model-time").textContent = `${milliseconds.model.toFixed(0)} ms`;
    element("answer").hidden = false;
    showStatus("Done.");
  } catch (error) {
    if (thisTurn === turn) showStatus(error.message, "bad");
  }
}

element("file").addEventListener("change", (event) => event.target.files[0] && show(event.target.files[0]));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", name === "dragover");
  });
}
document.addEventListener("drop", (event) => event.dataTransfer.files[0] && show(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => event.clipboardData.files[0] && show(event.clipboardData.files[0]));
start().catch((error) => showStatus(error.message, "bad"));
