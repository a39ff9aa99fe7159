// The map: where each image is, moving and zooming it, and choosing points with pointer, lasso and keyboard.

import { renderer } from "./render.js";

const STEP = 60; // pixels of an arrow key
const NEAR = 10; // pixels from the pointer to a point
const [STRIP, LOST] = [-0.3, -1.12]; // where the rows of what has no place begin, right of the legend and below the map
const FAINT = 0x48000000; // the opacity of what is not selected
const RINGED = 300; // a larger selection is shown by its colors alone

// Places of all rows: x, y from -1 to 1; what has no place is in rows below the map, by its reason.
export function placed(data) {
  const { x, y, reason } = data.columns;
  const places = new Float32Array(2 * data.count);
  const lost = [];
  for (let row = 0; row < data.count; row++) {
    [places[2 * row], places[2 * row + 1]] = [x.array[row], y.array[row]];
    if (Number.isNaN(x.array[row])) lost.push(row);
  }
  if (reason) lost.sort((one, other) => reason.array[one] - reason.array[other] || one - other);
  const across = Math.max(50, Math.ceil(2 * Math.sqrt(lost.length)));
  const step = (1 - STRIP) / (across - 1);
  lost.forEach((row, n) => {
    places[2 * row] = STRIP + step * (n % across);
    places[2 * row + 1] = LOST - step * Math.floor(n / across);
  });
  return { places, lost: lost.length };
}

export class PointMap {
  constructor(points, overlay, { places, lost }, events) {
    Object.assign(this, { points, overlay, places, lost, events });
    this.renderer = renderer(points);
    this.colors = this.drawn = new Uint32Array(places.length / 2);
    this.order = Uint32Array.from(this.colors.keys());
    this.selected = new Uint32Array();
    this.focused = -1;
    this.lassoing = false;
    this.path = null;
    this.view = null;
    this.waiting = false;
    this.frames = 0;
    new ResizeObserver(() => this.resize()).observe(overlay);
    this.listen();
  }

  get ratio() { return devicePixelRatio || 1; }

  resize() {
    const { clientWidth, clientHeight } = this.overlay;
    for (const canvas of [this.points, this.overlay]) [canvas.width, canvas.height] = [Math.max(1, clientWidth * this.ratio), Math.max(1, clientHeight * this.ratio)];
    if (!this.view) this.showAll();
    this.redraw();
  }

  showAll() {
    const { width, height } = this.points;
    let [low, high] = [-1.05, 1.05];
    for (let n = 1; n < this.places.length; n += 2) low = Math.min(low, this.places[n] - 0.05);
    const scale = 0.98 * Math.min(width / 2.1, height / (high - low));
    this.view = { scale, left: width / 2, top: height / 2 + (scale * (high + low)) / 2 };
    this.fitted = scale;
    this.redraw();
  }

  // Points that `shown` has (bytes by row, or null for all) are drawn, selected ones on top of the others.
  show(colors, shown) {
    this.colors = colors;
    this.shown = shown;
    this.reorder();
  }

  select(rows) {
    this.selected = rows;
    this.reorder();
  }

  reorder() {
    const marked = new Uint8Array(this.colors.length);
    for (const row of this.selected) marked[row] = 1;
    const order = new Uint32Array(this.colors.length);
    let count = 0;
    for (const wanted of [0, 1]) {
      for (let row = 0; row < marked.length; row++) if (marked[row] === wanted && (wanted || !this.shown || this.shown[row])) order[count++] = row;
    }
    this.order = order.subarray(0, count);
    this.drawn = this.selected.length ? this.colors.map((color, row) => (marked[row] ? color : ((color & 0xffffff) | FAINT) >>> 0)) : this.colors;
    this.redraw();
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    if (!this.view) return;
    this.frames += 1;
    const size = Math.min(14, Math.max(this.order.length > 2e5 ? 1.5 : 3, 3 * Math.sqrt(this.view.scale / this.fitted))) * this.ratio;
    this.renderer.draw(this.places, this.drawn, this.order, { ...this.view, size });
    this.mark(size);
  }

  mark(size) {
    const context = this.overlay.getContext("2d");
    const ink = getComputedStyle(this.overlay).color;
    context.clearRect(0, 0, this.overlay.width, this.overlay.height);
    context.strokeStyle = ink;
    context.lineWidth = this.ratio;
    if (this.lost) {
      const { scale, left, top } = this.view;
      context.fillStyle = ink;
      context.font = `${12 * this.ratio}px system-ui, sans-serif`;
      context.fillText("not on the map", STRIP * scale + left, top - LOST * scale - 10 * this.ratio);
    }
    if (this.selected.length <= RINGED) {
      for (const row of this.selected) {
        const [x, y] = this.at(row);
        context.strokeRect(x - size / 2 - 1, y - size / 2 - 1, size + 2, size + 2);
      }
    }
    if (this.focused >= 0) {
      const [x, y] = this.at(this.focused);
      context.lineWidth = 3 * this.ratio;
      context.beginPath();
      context.arc(x, y, size + 4 * this.ratio, 0, 7);
      context.stroke();
    }
    if (this.path) {
      context.lineWidth = 2 * this.ratio;
      context.setLineDash([6, 4]);
      context.beginPath();
      this.path.forEach(([x, y], n) => (n ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
      context.setLineDash([]);
    }
  }

  at(row) {
    const { scale, left, top } = this.view;
    return [this.places[2 * row] * scale + left, top - this.places[2 * row + 1] * scale];
  }

  nearest(x, y) {
    const { scale, left, top } = this.view;
    const [px, py] = [(x - left) / scale, (top - y) / scale];
    let best = ((NEAR * this.ratio) / scale) ** 2;
    let found = -1;
    for (let n = 0; n < this.order.length; n++) {
      const row = this.order[n];
      const distance = (this.places[2 * row] - px) ** 2 + (this.places[2 * row + 1] - py) ** 2;
      if (distance <= best) [best, found] = [distance, row];
    }
    return found;
  }

  inside(path) {
    const { scale, left, top } = this.view;
    const corners = path.map(([x, y]) => [(x - left) / scale, (top - y) / scale]);
    const [lowX, highX] = [Math.min(...corners.map(([x]) => x)), Math.max(...corners.map(([x]) => x))];
    const [lowY, highY] = [Math.min(...corners.map(([, y]) => y)), Math.max(...corners.map(([, y]) => y))];
    return this.order.filter((row) => {
      const [x, y] = [this.places[2 * row], this.places[2 * row + 1]];
      if (x < lowX || x > highX || y < lowY || y > highY) return false;
      let within = false;
      for (let n = 0, before = corners.length - 1; n < corners.length; before = n++) {
        const [[ax, ay], [bx, by]] = [corners[n], corners[before]];
        if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) within = !within;
      }
      return within;
    }).sort();
  }

  visible() {
    const { width, height } = this.overlay;
    return this.inside([[0, 0], [width, 0], [width, height], [0, height]]);
  }

  move(dx, dy) {
    this.view.left += dx;
    this.view.top += dy;
    this.redraw();
  }

  zoom(factor, x = this.overlay.width / 2, y = this.overlay.height / 2) {
    const scale = Math.min(400 * this.fitted, Math.max(this.fitted / 4, this.view.scale * factor));
    const actual = scale / this.view.scale;
    this.view = { scale, left: x + (this.view.left - x) * actual, top: y + (this.view.top - y) * actual };
    this.redraw();
  }

  setLasso(on) {
    this.lassoing = on;
    this.overlay.classList.toggle("lasso", on);
    this.events.lasso(on);
  }

  listen() {
    const { overlay } = this;
    const place = (event) => {
      const box = overlay.getBoundingClientRect();
      return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
    };
    let last = null;
    let moved = 0;
    overlay.addEventListener("pointerdown", (event) => {
      overlay.setPointerCapture(event.pointerId);
      last = place(event);
      moved = 0;
      if (this.lassoing || event.shiftKey) this.path = [last];
      this.events.hover(-1);
    });
    overlay.addEventListener("pointermove", (event) => {
      const [x, y] = place(event);
      if (!last) {
        this.events.hover(this.view ? this.nearest(x, y) : -1, x / this.ratio, y / this.ratio);
        return;
      }
      moved += Math.hypot(x - last[0], y - last[1]);
      if (this.path) { this.path.push([x, y]); this.redraw(); } else this.move(x - last[0], y - last[1]);
      last = [x, y];
    });
    overlay.addEventListener("pointerup", (event) => {
      const path = this.path;
      [this.path, last] = [null, null];
      if (path && path.length > 2) this.events.select(this.inside(path), "in the lasso");
      else if (moved < 4 * this.ratio) {
        const found = this.nearest(...place(event));
        if (found >= 0) this.events.open(found);
      }
      this.redraw();
    });
    overlay.addEventListener("pointerleave", () => this.events.hover(-1));
    overlay.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 400), ...place(event));
    }, { passive: false });
    overlay.addEventListener("keydown", (event) => {
      const step = STEP * this.ratio;
      const keys = {
        ArrowLeft: () => this.move(step, 0), ArrowRight: () => this.move(-step, 0), ArrowUp: () => this.move(0, step), ArrowDown: () => this.move(0, -step),
        "+": () => this.zoom(1.3), "=": () => this.zoom(1.3), "-": () => this.zoom(1 / 1.3), 0: () => this.showAll(),
        l: () => this.setLasso(!this.lassoing), Enter: () => this.events.select(this.visible(), "in view"), Escape: () => this.events.select(new Uint32Array(), ""),
      };
      const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });
  }
}
