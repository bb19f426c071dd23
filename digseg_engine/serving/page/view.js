// The canvas: the picture with its masks, zoomed and moved by wheel, pointer, pinch and keys.

const LARGEST = 40, MARGIN = 18, STEP = 1.25, MOVE = 60;

export class View {
  constructor(canvas, { hovered, zoomed }) {
    Object.assign(this, { canvas, hovered, zoomed, picture: null, opacity: 0.55, near: null, scale: 1, left: 0, top: 0, fitted: true });
    this.pen = canvas.getContext("2d");
    this.pointers = new Map();
    this.pending = 0;
    new ResizeObserver(() => this.resize()).observe(canvas.parentElement);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.hovered([], 0, 0));
    canvas.addEventListener("dblclick", () => this.fit());
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  show(picture) {
    this.picture = picture;
    this.canvas.hidden = !picture?.bitmap;
    this.resize();
    this.fit();
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas.parentElement, ratio = devicePixelRatio || 1;
    [this.width, this.height, this.ratio] = [clientWidth, clientHeight, ratio];
    this.canvas.width = Math.round(clientWidth * ratio);
    this.canvas.height = Math.round(clientHeight * ratio);
    if (this.fitted) this.fit();
    else this.draw();
  }

  get whole() {
    const [width, height] = this.picture.size, foot = 68; // room for the tools
    return Math.min((this.width - 2 * MARGIN) / width, (this.height - MARGIN - foot) / height);
  }

  fit() {
    if (!this.picture?.bitmap) return;
    const [width, height] = this.picture.size;
    this.scale = Math.max(this.whole, 0.001);
    this.left = (this.width - width * this.scale) / 2;
    this.top = Math.max(MARGIN, (this.height - 50 - height * this.scale) / 2);
    this.fitted = true;
    this.zoomed(this.scale);
    this.draw();
  }

  zoom(times, x = this.width / 2, y = this.height / 2) {
    if (!this.picture?.bitmap) return;
    const next = Math.min(Math.max(this.scale * times, this.whole / 2), Math.max(LARGEST, this.whole));
    this.left = x - (x - this.left) * next / this.scale;
    this.top = y - (y - this.top) * next / this.scale;
    this.scale = next;
    this.fitted = false;
    this.pan(0, 0);
    this.zoomed(this.scale);
  }

  pan(x, y) {
    if (!this.picture?.bitmap) return;
    const [width, height] = this.picture.size, keep = 60; // pixels of the picture that stay in sight
    this.left = Math.min(Math.max(this.left + x, keep - width * this.scale), this.width - keep);
    this.top = Math.min(Math.max(this.top + y, keep - height * this.scale), this.height - keep);
    if (x || y) this.fitted = false;
    this.draw();
  }

  wheel(event) {
    event.preventDefault();
    const { x, y } = this.point(event);
    if (event.ctrlKey || !event.shiftKey) this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), x, y);
    else this.pan(-event.deltaY, 0);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.point(event));
    this.look(event);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId), now = this.point(event);
    if (!before) return this.look(event);
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    if (others.length) {
      const [other] = others, distance = (place) => Math.hypot(place.x - other.x, place.y - other.y) || 1;
      this.zoom(distance(now) / distance(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
      this.pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    } else this.pan(now.x - before.x, now.y - before.y);
    this.pointers.set(event.pointerId, now);
  }

  look(event) {
    if (!this.picture?.bitmap) return;
    const { x, y } = this.point(event), [width, height] = this.picture.size;
    this.hovered(this.picture.at((x - this.left) / (width * this.scale), (y - this.top) / (height * this.scale)), x, y);
  }

  key(event) {
    const moves = { ArrowLeft: [MOVE, 0], ArrowRight: [-MOVE, 0], ArrowUp: [0, MOVE], ArrowDown: [0, -MOVE] };
    if (event.key in moves) this.pan(...moves[event.key]);
    else return;
    event.preventDefault();
  }

  larger() { this.zoom(STEP); }
  smaller() { this.zoom(1 / STEP); }

  draw() {
    if (!this.pending) this.pending = requestAnimationFrame(() => { this.pending = 0; this.paint(); });
  }

  paint() {
    const { pen, ratio } = this;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.picture?.bitmap) return;
    const [width, height] = this.picture.size;
    pen.setTransform(ratio * this.scale, 0, 0, ratio * this.scale, ratio * this.left, ratio * this.top);
    pen.imageSmoothingEnabled = this.scale < 3;
    pen.imageSmoothingQuality = "high";
    pen.fillStyle = "white"; // under what is transparent, as the model sees it
    pen.fillRect(0, 0, width, height);
    pen.drawImage(this.picture.bitmap, 0, 0, width, height);
    layers(pen, this.picture, this.opacity, this.near);
  }
}

// Masks over a picture that was drawn; near: the entry to bring out.
export function layers(pen, picture, opacity, near = null) {
  const [width, height] = picture.size;
  for (const entry of picture.visible) {
    const strength = near && near !== entry ? 0.35 : 1;
    pen.globalAlpha = Math.min(1, opacity * 1.6) * strength;
    pen.globalCompositeOperation = "color"; // the picture's lightness under the legend's hue
    pen.drawImage(entry.layer.area, 0, 0, width, height);
    pen.globalCompositeOperation = "source-over";
    pen.globalAlpha = opacity * 0.75 * strength;
    pen.drawImage(entry.layer.area, 0, 0, width, height);
    pen.globalAlpha = Math.min(1, opacity * 1.6) * strength;
    pen.drawImage(entry.layer.edge, 0, 0, width, height);
  }
  pen.globalAlpha = 1;
}
