// Moving and zooming of images and the map: mouse, wheel, touch, pinch.

const STEP = 1.0015; // zoom of one unit of a wheel

/** Call `pan(dx, dy)`, `zoom(factor, x, y)` and `tap(x, y)` for gestures on `element`; in its pixels. */
export function watchGestures(element, { pan, zoom, tap, wheel }) {
  const held = new Map();
  let moved = 0;
  const at = (event) => {
    const box = element.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    element.setPointerCapture(event.pointerId);
    held.set(event.pointerId, at(event));
    moved = held.size > 1 ? Infinity : 0;
  });
  element.addEventListener("pointermove", (event) => {
    const before = held.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    if (held.size === 1) {
      moved += Math.hypot(now.x - before.x, now.y - before.y);
      pan(now.x - before.x, now.y - before.y);
    } else {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      const length = (point) => Math.max(1, Math.hypot(point.x - other.x, point.y - other.y));
      zoom(length(now) / length(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
      pan((now.x - before.x) / 2, (now.y - before.y) / 2);
    }
    held.set(event.pointerId, now);
  });
  const release = (event) => {
    if (!held.delete(event.pointerId)) return;
    if (event.type === "pointerup" && moved < 5 && tap) tap(at(event).x, at(event).y);
  };
  element.addEventListener("pointerup", release);
  element.addEventListener("pointercancel", release);
  element.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
      if (wheel && !event.ctrlKey) wheel(lines);
      else zoom(STEP ** -lines, at(event).x, at(event).y);
    },
    { passive: false },
  );
}

/** A magnified view: screen = scale * world + (x, y). Never smaller than at first, never out of the frame. */
export class View {
  constructor(maximum = 16) {
    this.maximum = maximum;
    this.reset();
  }

  reset() {
    this.scale = 1;
    this.x = 0;
    this.y = 0;
  }

  /** Zoom by a factor about a point of a frame of this width and height. */
  zoom(factor, x, y, width, height) {
    const scale = Math.min(this.maximum, Math.max(1, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.pan(0, 0, width, height);
  }

  pan(dx, dy, width, height) {
    this.x = Math.min(0, Math.max(width * (1 - this.scale), this.x + dx));
    this.y = Math.min(0, Math.max(height * (1 - this.scale), this.y + dy));
  }
}
