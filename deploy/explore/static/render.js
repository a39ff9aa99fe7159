// Points on a canvas: by the graphics processor where there is one, else pixel by pixel into an image, which software
// does many times faster than drawing shapes. Both take places, a color for each point, and the view.

export function renderer(canvas) {
  const gl = canvas.getContext("webgl2", { failIfMajorPerformanceCaveat: true, antialias: false });
  return gl ? graphics(gl) : pixels(canvas.getContext("2d", { alpha: true }));
}

function pixels(context) {
  let image = null;
  let target = null;
  return {
    kind: "2d",
    draw(places, colors, order, { scale, left, top, size }) {
      const { width, height } = context.canvas;
      if (!image || image.width !== width || image.height !== height) {
        image = context.createImageData(width, height);
        target = new Uint32Array(image.data.buffer);
      }
      target.fill(0);
      const wide = Math.max(1, Math.round(size));
      const half = wide >> 1;
      for (let n = 0; n < order.length; n++) {
        const row = order[n];
        const x = Math.round(places[2 * row] * scale + left) - half;
        const y = Math.round(top - places[2 * row + 1] * scale) - half;
        if (x < 0 || y < 0 || x + wide > width || y + wide > height) continue;
        const color = colors[row];
        let start = y * width + x;
        for (let line = 0; line < wide; line++, start += width) {
          const inset = wide > 3 && (line === 0 || line === wide - 1) ? 1 : 0; // rounded
          for (let pixel = start + inset; pixel < start + wide - inset; pixel++) target[pixel] = color;
        }
      }
      context.putImageData(image, 0, 0);
    },
  };
}

const VERTEX = `#version 300 es
in vec2 place; in vec4 color; uniform vec4 view; uniform float size; out vec4 shade;
void main() { gl_Position = vec4(place * view.xy + view.zw, 0.0, 1.0); gl_PointSize = size; shade = color; }`;
const FRAGMENT = `#version 300 es
precision mediump float; in vec4 shade; out vec4 drawn;
void main() { if (length(gl_PointCoord - 0.5) > 0.5) discard; drawn = vec4(shade.rgb * shade.a, shade.a); }`;

function graphics(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  gl.useProgram(program);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [view, pointSize] = [uniform("view"), uniform("size")];
  const buffers = {};
  const sent = new Map();
  const send = (name, kind, array) => {
    buffers[name] ??= gl.createBuffer();
    gl.bindBuffer(kind, buffers[name]);
    if (sent.get(name) !== array) { gl.bufferData(kind, array, gl.STATIC_DRAW); sent.set(name, array); }
  };
  const attribute = (name, size, kind, normalized) => {
    const place = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, kind, normalized, 0, 0);
  };
  return {
    kind: "webgl2",
    draw(places, colors, order, { scale, left, top, size }) {
      const { width, height } = gl.canvas;
      gl.viewport(0, 0, width, height);
      gl.clearColor(0, 0, 0, 0);
      gl.clear(gl.COLOR_BUFFER_BIT);
      send("places", gl.ARRAY_BUFFER, places);
      attribute("place", 2, gl.FLOAT, false);
      send("colors", gl.ARRAY_BUFFER, colors);
      attribute("color", 4, gl.UNSIGNED_BYTE, true);
      send("order", gl.ELEMENT_ARRAY_BUFFER, order);
      gl.uniform4f(view, (2 * scale) / width, (2 * scale) / height, (2 * left) / width - 1, 1 - (2 * top) / height);
      gl.uniform1f(pointSize, Math.max(1, size));
      gl.drawElements(gl.POINTS, order.length, gl.UNSIGNED_INT, 0);
    },
  };
}
