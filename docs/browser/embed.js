// Embeds images in the browser with a published bundle. The vectors are those of deploy.load(bundle).embed in Python.
//
//     import { load } from "./embed.js";
//     const encoder = await load("bundle/");
//     await encoder.verify();
//     const { vector } = await encoder.embed(file);   // a File or Blob → Float32Array of length 1
//
// The two files of onnxruntime-web must be in ort/ next to this file; nothing is fetched from other servers.

import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { read } from "./preprocess.js";

const READABLE = [1, 2]; // format versions of bundle.json, as in deploy/bundle.py

// Threads need shared memory, which browsers give to pages that are cross-origin isolated.
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;

/** Fetch the bundle at `url` (which ends with "/"), compare its files with the manifest, and start the model. */
export async function load(url) {
  const files = await openBundle(url);
  const card = JSON.parse(new TextDecoder().decode(await files.read("bundle.json")));
  if (!READABLE.includes(card.format_version)) {
    throw new Error(`bundle.json: format version ${card.format_version}, this page reads ${READABLE}; export it again`);
  }
  const model = await files.read("encoder.fp32.onnx");
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return new Encoder(files, card, session);
}

export class Encoder {
  /** `card` is bundle.json. Only vectors of encoders with equal `id`, the manifest's SHA-256, can be compared. */
  constructor(files, card, session) {
    this.files = files;
    this.id = files.id;
    this.card = card;
    this.session = session;
  }

  /**
   * Embed one image file.
   *
   * @param {Blob} file
   * @returns {Promise<{vector: Float32Array, milliseconds: {pixels: number, model: number}}>} a vector of length 1
   */
  async embed(file) {
    const begin = performance.now();
    const { size } = this.card.preprocessing;
    const pixels = await read(file, this.card.preprocessing);
    const decoded = performance.now();
    const images = new ort.Tensor("uint8", pixels, [1, size, size, 3]);
    const outputs = await this.session.run({ [this.session.inputNames[0]]: images });
    const features = outputs[this.session.outputNames[0]].data;
    if (features.length !== this.card.dim) {
      throw new Error(`the model gives ${features.length} numbers, bundle.json says ${this.card.dim}; export it again`);
    }
    const milliseconds = { pixels: decoded - begin, model: performance.now() - decoded };
    return { vector: normalize(features), milliseconds };
  }

  /**
   * Embed the golden images and compare with the vectors of the trained network.
   *
   * @returns {Promise<{passed: boolean, cosineMin: number, maxAbs: number, images: object[], allowed: object}>}
   */
  async verify() {
    const names = this.files.names.filter((name) => /^golden\/[^/]+\.png$/.test(name)).sort();
    const reference = parseNpy(await this.files.read("golden/vectors.npy"));
    if (names.length === 0 || reference.rows !== names.length || reference.columns !== this.card.dim) {
      throw new Error(`golden: ${names.length} images, vectors ${reference.rows} x ${reference.columns}; export it again`);
    }
    const images = [];
    for (const [row, name] of names.entries()) {
      const { vector } = await this.embed(new Blob([await this.files.read(name)]));
      images.push({ name, ...compare(vector, reference.row(row)) });
    }
    const cosineMin = Math.min(...images.map((image) => image.cosine));
    const maxAbs = Math.max(...images.map((image) => image.maxAbs));
    const allowed = this.card.golden.tolerance;
    const passed = cosineMin >= allowed.cosine_min && maxAbs <= allowed.max_abs;
    return { passed, cosineMin, maxAbs, images, allowed };
  }
}

/** Cosine similarity and largest difference of two vectors. */
export function compare(left, right) {
  let [product, leftLength, rightLength, maxAbs] = [0, 0, 0, 0];
  for (let index = 0; index < left.length; index++) {
    product += left[index] * right[index];
    leftLength += left[index] ** 2;
    rightLength += right[index] ** 2;
    maxAbs = Math.max(maxAbs, Math.abs(left[index] - right[index]));
  }
  return { cosine: product / Math.sqrt(leftLength * rightLength), maxAbs };
}

/** Parse a float32 matrix as numpy.save writes it (NEP 1, versions 1 and 2). */
export function parseNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [start, length] = bytes[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const shape = /'descr': '<f4', 'fortran_order': False, 'shape': \((\d+), (\d+)\)/.exec(header);
  if (!shape) throw new Error(`not a float32 matrix: ${header.trim()}; export the bundle again`);
  const [rows, columns] = shape.slice(1).map(Number);
  const values = new Float32Array(bytes.slice(start + length).buffer, 0, rows * columns);
  return { rows, columns, row: (index) => values.subarray(index * columns, (index + 1) * columns) };
}

function normalize(features) {
  const length = Math.sqrt(features.reduce((sum, value) => sum + value * value, 0));
  return features.map((value) => value / Math.max(length, 1e-12));
}

async function openBundle(url) {
  const manifest = await fetchBytes(url + "MANIFEST.sha256");
  const lines = new TextDecoder().decode(manifest).trimEnd().split("\n");
  const digests = new Map(lines.map((line) => [line.slice(66), line.slice(0, 64)]));
  async function read(name) {
    const bytes = await fetchBytes(url + name);
    if ((await sha256(bytes)) !== digests.get(name)) {
      throw new Error(`${name}: its SHA-256 differs from MANIFEST.sha256; copy the bundle again`);
    }
    return bytes;
  }
  return { id: await sha256(manifest), names: [...digests.keys()], read };
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}; copy a bundle to this place`);
  return new Uint8Array(await response.arrayBuffer());
}

async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) throw new Error("hashes need a secure page; open it by https or on localhost");
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
