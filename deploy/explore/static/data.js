// What the server is asked: columns as typed arrays, rows, and decisions.

const LARGEST = 5e6; // bytes of a picture that is sent as it is
const SIDE = 1024; // pixels of one that is not
const KINDS = { float32: Float32Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };

async function answered(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  const said = await answer.text();
  let message = said;
  try { message = JSON.parse(said).error ?? said; } catch { /* it is text */ }
  throw new Error(message || `${path}: ${answer.status}`);
}

export async function load() {
  const about = await ask("/about");
  const buffer = await (await answered("/points")).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = {};
  for (const { name, type, offset, values } of header.columns) {
    columns[name] = { array: new KINDS[type](buffer, 4 + length + offset, header.count), values };
  }
  return { ...about, ...header, columns };
}

export async function ask(path) {
  return (await answered(path)).json();
}

export async function rows(path, body) {
  return new Uint32Array(await (await answered(path, body && posted(body))).arrayBuffer());
}

export async function post(path, body) {
  return (await answered(path, posted(body))).json();
}

function posted(body) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

// A picture as Base64. One that the server would refuse for its size is reduced first, if this browser can read it.
export async function base64(file) {
  const bytes = new Uint8Array(await (await reduced(file)).arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768) text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  return btoa(text);
}

async function reduced(file) {
  if (file.size <= LARGEST) return file;
  const image = await createImageBitmap(file).catch(() => null);
  if (!image) return file;
  const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale)));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/png" });
}

// The text of a coded column at a row; null where it is missing.
export function text(column, row) {
  const code = column.array[row];
  return code ? column.values[code - 1] : null;
}
