// From an image file to the uint8 pixels that an encoder sees: deploy/images/preprocess.py in the browser.
//
// The resize is implemented here, because every browser scales a canvas differently. It has Pillow's integer arithmetic,
// so that the same decoded pixels give the same bytes.

const MAX_PIXELS = 80_000_000; // as in deploy/images/preprocess.py
const CANVAS_PIXELS = 1 << 22; // a canvas over its limit, 2^24 pixels on iOS, stays blank without an error
const MAX_SIDE = 16_384; // the longest canvas that Chromium, Firefox and Safari all draw on
const LEVELS = { white: 255, black: 0, gray: 128 }; // as in deploy/images/background.py, like the next two
const CHECKS = [153, 102];
const SQUARES = 16;
const PRECISION_BITS = 22; // of a weight, as in Pillow's Resample.c: 32 bits minus 8 for the pixel and 2 for the sum

/**
 * Make of an image file what an encoder sees: Preprocessing.read, by the fields of `preprocessing` in bundle.json.
 *
 * @param {Blob} file
 * @returns {Promise<Uint8Array>} RGB [size, size, 3]
 */
export async function read(file, { size, resize, background = "white", letterbox = false, ...others }) {
  if (!(background in LEVELS || ["checker", "mean"].includes(background)) || Object.keys(others).length > 0) {
    const given = JSON.stringify({ background, ...others });
    throw new Error(`bundle.json: preprocessing has ${given}, which this page does not know; take a newer page`);
  }
  const picture = await decode(file, background);
  return resizeAndCrop(letterbox ? intoSquare(picture, resize, background) : picture, { size, resize });
}

/**
 * Decode the first frame of an image file: upright by its EXIF orientation, in sRGB, on `background`.
 *
 * @param {Blob} file
 * @returns {Promise<{width: number, height: number, data: Uint8Array}>} data is RGB, row by row
 */
export async function decode(file, background = "white") {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch (error) {
    throw new Error(`this browser cannot read the image (${error.message}); give a PNG, JPEG, WebP, GIF or BMP file`);
  }
  try {
    return composite(bitmap, background);
  } finally {
    bitmap.close();
  }
}

function composite(bitmap, background) {
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS || Math.max(width, height) > MAX_SIDE) {
    const allowed = `${MAX_PIXELS.toLocaleString("en")} pixels and sides of ${MAX_SIDE}`;
    throw new Error(`the image has ${width} x ${height} pixels, allowed are ${allowed}; make it smaller`);
  }
  const bandHeight = Math.min(height, Math.floor(CANVAS_PIXELS / width));
  const context = new OffscreenCanvas(width, bandHeight).getContext("2d", { willReadFrequently: true });
  const data = new Uint8Array(width * height * 3);
  const opacity = new Uint8Array(width * height);
  let target = 0;
  let mostOpaque = 0;
  for (let top = 0; top < height; top += bandHeight) {
    const rows = Math.min(bandHeight, height - top);
    context.clearRect(0, 0, width, bandHeight);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    const rgba = context.getImageData(0, 0, width, rows).data;
    for (let source = 0; source < rgba.length; source += 4) {
      const alpha = rgba[source + 3];
      mostOpaque = Math.max(mostOpaque, alpha);
      opacity[target / 3] = alpha;
      for (let channel = 0; channel < 3; channel++) data[target++] = rgba[source + channel];
    }
  }
  if (mostOpaque === 0) throw new Error("every pixel is fully transparent; store the image on a visible background");
  const color = painter(background, { width, height, data }, opacity);
  for (let pixel = 0; pixel < opacity.length; pixel++) {
    const alpha = opacity[pixel];
    if (alpha === 255) continue;
    const behind = color(pixel % width, Math.floor(pixel / width));
    for (let index = 3 * pixel; index < 3 * pixel + 3; index++) {
      data[index] = (data[index] * alpha + behind[index % 3] * (255 - alpha) + 127) / 255;
    }
  }
  return { width, height, data };
}

/** What is painted at a column and row [red, green, blue]; `opacity` has the alpha of each pixel of the picture. */
function painter(background, { width, height, data }, opacity, side = Math.max(width, height)) {
  if (background === "checker") {
    const square = Math.max(1, Math.floor(side / SQUARES));
    const grays = CHECKS.map((level) => [level, level, level]);
    return (column, row) => grays[(Math.floor(column / square) + Math.floor(row / square)) % 2];
  }
  const color = background === "mean" ? meanColor(data, opacity) : Array(3).fill(LEVELS[background]);
  return () => color;
}

function meanColor(data, opacity) {
  const sums = [0, 0, 0];
  let count = 0;
  for (let pixel = 0; pixel < opacity.length; pixel++) {
    if (opacity[pixel] === 0) continue;
    count++;
    for (let channel = 0; channel < 3; channel++) sums[channel] += data[3 * pixel + channel];
  }
  return sums.map((sum) => roundHalfEven(sum / count));
}

/** Put all of a picture into a square whose side is at most `side` pixels: letterbox in background.py. */
function intoSquare(picture, side, background) {
  const longest = Math.max(picture.width, picture.height);
  if (longest > side) {
    const [width, height] = [picture.width, picture.height].map((length) =>
      Math.max(1, roundHalfEven((length * side) / longest)),
    );
    picture = { width, height, data: resample(picture, fullTaps(picture.width, width), fullTaps(picture.height, height)) };
  }
  const { width, height, data } = picture;
  const edge = Math.max(width, height);
  const [left, top] = [Math.floor((edge - width) / 2), Math.floor((edge - height) / 2)];
  const color = painter(background, picture, new Uint8Array(width * height).fill(255), edge);
  const square = new Uint8Array(edge * edge * 3);
  for (let pixel = 0; pixel < edge * edge; pixel++) square.set(color(pixel % edge, Math.floor(pixel / edge)), 3 * pixel);
  for (let row = 0; row < height; row++) {
    square.set(data.subarray(row * width * 3, (row + 1) * width * 3), ((top + row) * edge + left) * 3);
  }
  return { width: edge, height: edge, data: square };
}

/**
 * Resize the short side to `resize` pixels and keep the central square of `size` pixels: Preprocessing.apply.
 *
 * @returns {Uint8Array} RGB [size, size, 3]
 */
export function resizeAndCrop(picture, { size, resize }) {
  const { width, height } = picture;
  const short = Math.min(width, height);
  const across = cropTaps(width, Math.floor((resize * width) / short), size);
  const down = cropTaps(height, Math.floor((resize * height) / short), size);
  return resample(picture, across, down);
}

function fullTaps(length, resized) {
  return cropTaps(length, resized, resized);
}

/** Apply the taps of every column (`across`) and row (`down`) of the result: RGB, row by row. */
function resample({ width, height, data }, across, down) {
  const [columns, rows] = [across.length, down.length];
  const result = new Uint8Array(columns * rows * 3);
  if (isVerticalFirst(width, height, columns, rows)) {
    const { first, count } = inputRange(across);
    const middle = new Uint8Array(rows * count * 3);
    for (let column = 0; column < count; column++) {
      applyTaps(data, (first + column) * 3, width * 3, down, middle, column * 3, count * 3);
    }
    for (let row = 0; row < rows; row++) {
      applyTaps(middle, (row * count - first) * 3, 3, across, result, row * columns * 3, 3);
    }
  } else {
    const { first, count } = inputRange(down);
    const middle = new Uint8Array(count * columns * 3);
    for (let row = 0; row < count; row++) {
      applyTaps(data, (first + row) * width * 3, 3, across, middle, row * columns * 3, 3);
    }
    for (let column = 0; column < columns; column++) {
      applyTaps(middle, (column - first * columns) * 3, columns * 3, down, result, column * 3, columns * 3);
    }
  }
  return result;
}

/** Whether Pillow 13 runs the vertical pass first. The result of the first pass is rounded, so the order matters. */
function isVerticalFirst(width, height, columns, rows) {
  return height > rows && height - rows > 2 * (width - columns);
}

/** The range of input pixels along one side that the crop depends on. */
function inputRange(taps) {
  const first = taps[0].start;
  const { start, weights } = taps.at(-1);
  return { first, count: start + weights.length - first };
}

/** For each output pixel of the crop along one side: the range of input pixels, and their weights. */
function cropTaps(length, resized, size) {
  const step = length / resized;
  const offset = roundHalfEven((resized - size) / 2);
  const begin = Math.fround(offset * step); // Pillow takes the box as 32-bit floats
  const end = Math.fround(Math.min((offset + size) * step, length));
  const scale = Math.fround(end - begin) / size;
  const reach = Math.max(scale, 1); // the triangle is as wide as an output pixel: this is what prevents aliasing
  return Array.from({ length: size }, (_, position) => {
    const center = begin + (position + 0.5) * scale;
    const start = Math.max(Math.trunc(center - reach + 0.5), 0);
    const stop = Math.min(Math.trunc(center + reach + 0.5), length);
    const triangle = Array.from({ length: stop - start }, (_, index) =>
      Math.max(1 - Math.abs((index + start - center + 0.5) * (1 / reach)), 0),
    );
    const sum = triangle.reduce((total, weight) => total + weight, 0);
    const weights = triangle.map((weight) => Math.trunc(0.5 + weight * (1 / sum) * 2 ** PRECISION_BITS));
    return { start, weights: Int32Array.from(weights) };
  });
}

/** Resize one line of pixels, `stride` apart, to a line of output pixels, `targetStride` apart. */
function applyTaps(pixels, base, stride, taps, target, targetBase, targetStride) {
  for (let position = 0; position < taps.length; position++) {
    const { start, weights } = taps[position];
    for (let channel = 0; channel < 3; channel++) {
      let sum = 1 << (PRECISION_BITS - 1);
      let source = base + start * stride + channel;
      for (let index = 0; index < weights.length; index++, source += stride) sum += pixels[source] * weights[index];
      target[targetBase + position * targetStride + channel] = Math.min(sum >> PRECISION_BITS, 255);
    }
  }
}

/** Like Python's round(): a half goes to the even neighbor. */
function roundHalfEven(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}
