// A color for each point, and the legend that explains it. Classes have colors that people with any color vision can
// tell apart (after Okabe and Ito, and Tol), as far as there are; a click in the legend shows one of them alone.

const CLASSES = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#999933", "#aa3377", "#44aa99", "#b15928", "#5f8dd3"];
const SCALE = ["#00224e", "#2a3f6d", "#575d6d", "#7c7b78", "#a59c74", "#d2c060", "#fee838"]; // cividis
const NAMES = { label: "class", prediction: "prediction", confidence: "confidence", batch: "batch", novelty: "novelty", near_group: "duplicate group", split: "split", reason: "quarantine reason", state: "state", decided: "decided now", champion: "answer of the release", label_confidence: "probability of its class" };
const PLACES = ["x", "y", "tile"]; // columns that say where, and not what
const SHOWN = 40; // lines of a legend

export const dark = () => matchMedia("(prefers-color-scheme: dark)").matches;
const packed = (color) => (0xff000000 | (parseInt(color.slice(5, 7), 16) << 16) | (parseInt(color.slice(3, 5), 16) << 8) | parseInt(color.slice(1, 3), 16)) >>> 0;
const missing = () => (dark() ? "#5a6068" : "#b4b9c0");

export function choices(data) {
  const others = Object.keys(data.columns).filter((name) => !(name in NAMES) && !PLACES.includes(name));
  return [...others, ...Object.keys(NAMES)].filter((name) => name in data.columns && (name === "decided" || used(data.columns[name]))).map((name) => [name, NAMES[name] ?? name]);
}

function used(column) {
  return column.array instanceof Float32Array ? column.array.some((value) => !Number.isNaN(value)) : column.array.some((code) => code > 0);
}

// colors: uint32 of each point; lines: [{ code, name, color, count }] or a scale { low, high, stops }.
export function paint(data, name) {
  const column = data.columns[name];
  return column.array instanceof Float32Array ? gradient(column.array, data.count) : categories(column, data.count);
}

function categories({ array, values }, count) {
  const counts = new Uint32Array(array.reduce((most, code) => Math.max(most, code), 0) + 1);
  for (let row = 0; row < count; row++) counts[array[row]] += 1;
  const palette = new Uint32Array(counts.length);
  const color = (code) => (code ? CLASSES[(code - 1) % CLASSES.length] : missing());
  for (let code = 0; code < counts.length; code++) palette[code] = packed(color(code));
  const colors = new Uint32Array(count);
  for (let row = 0; row < count; row++) colors[row] = palette[array[row]];
  const lines = [];
  for (let code = 1; code < counts.length; code++) if (counts[code]) lines.push({ code, name: values.length ? values[code - 1] : `group ${code}`, color: color(code), count: counts[code] });
  lines.sort((one, other) => other.count - one.count);
  const kept = lines.slice(0, SHOWN);
  if (counts[0]) kept.push({ code: 0, name: "none", color: color(0), count: counts[0] });
  return { colors, lines: kept, more: Math.max(0, lines.length - SHOWN) };
}

function gradient(array, count) {
  const known = array.filter((value) => !Number.isNaN(value)).sort();
  const low = known[Math.floor(0.01 * (known.length - 1))] ?? 0;
  const high = known[Math.ceil(0.99 * (known.length - 1))] ?? 1;
  const stops = dark() ? SCALE.slice(1) : SCALE.slice(0, -1);
  const steps = new Uint32Array(256).map((_, step) => packed(mixed(stops, step / 255)));
  const gray = packed(missing());
  const colors = new Uint32Array(count);
  for (let row = 0; row < count; row++) {
    const value = array[row];
    colors[row] = Number.isNaN(value) ? gray : steps[Math.max(0, Math.min(255, Math.round((255 * (value - low)) / (high - low || 1))))];
  }
  return { colors, scale: { low, high, stops } };
}

function mixed(stops, share) {
  const place = share * (stops.length - 1);
  const first = Math.min(Math.floor(place), stops.length - 2);
  const part = (from) => {
    const [one, other] = [stops[first], stops[first + 1]].map((color) => parseInt(color.slice(from, from + 2), 16));
    return Math.round(one + (other - one) * (place - first)).toString(16).padStart(2, "0");
  };
  return `#${part(1)}${part(3)}${part(5)}`;
}

// `only`: the codes that are shown, or null; `choose` is called with the code of a line.
export function legend(element, name, painted, only, choose) {
  element.querySelector("h2").textContent = NAMES[name] ?? name;
  const list = element.querySelector("ul");
  if (painted.scale) {
    const { low, high, stops } = painted.scale;
    const line = document.createElement("li");
    const scale = document.createElement("canvas");
    scale.className = "scale";
    scale.setAttribute("aria-hidden", "true");
    [scale.width, scale.height] = [240, 1];
    const context = scale.getContext("2d");
    for (let x = 0; x < 240; x++) { context.fillStyle = mixed(stops, x / 239); context.fillRect(x, 0, 1, 1); }
    line.append(scale, `${low.toFixed(2)} to ${high.toFixed(2)}`);
    list.replaceChildren(line);
    return;
  }
  list.replaceChildren(...painted.lines.map(({ code, name: text, color, count }) => {
    const line = document.createElement("li");
    const button = document.createElement("button");
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.backgroundColor = color;
    button.append(swatch, `${text} (${count.toLocaleString("en")})`);
    button.setAttribute("aria-pressed", String(Boolean(only?.has(code))));
    button.className = only && !only.has(code) ? "off" : "";
    button.addEventListener("click", () => choose(code));
    line.append(button);
    return line;
  }));
  if (painted.more) list.append(Object.assign(document.createElement("li"), { textContent: `and ${painted.more.toLocaleString("en")} more` }));
}
