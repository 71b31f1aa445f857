const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const canvas = element("map");
const count = data.names.length;
const x = new Float64Array(count), y = new Float64Array(count);
for (let i = 0; i < count; i++) { x[i] = data.places[2 * i]; y[i] = data.places[2 * i + 1]; }
const most = (values) => values.reduce((a, b) => Math.max(a, b), 0);
const width = most(x), height = most(y); // of the map; the longer one is 1
const labelled = data.classes.length > 0;
const classOf = (i) => (labelled ? data.class[i] : 0);
const colorOf = (i) => (labelled ? data.classes[data.class[i]][1] : null);
const hidden = new Set(); // classes
const missing = new Set(data.missing);
const shown = (i) => !labelled || !hidden.has(data.class[i]);

// What is looked at: `scale` is pixels for one unit of the map, (cx, cy) its point in the middle.
const view = { cx: width / 2, cy: height / 2, scale: 1, fitted: 1 };
const state = { hovered: -1, held: -1, emphasis: -1 };
const focus = () => (state.hovered >= 0 ? state.hovered : state.held);
let pixels = { width: 1, height: 1 }; // of the canvas, in CSS pixels

const toScreen = (px, py) => [
  (px - view.cx) * view.scale + pixels.width / 2,
  (py - view.cy) * view.scale + pixels.height / 2,
];
const toMap = (sx, sy) => [
  (sx - pixels.width / 2) / view.scale + view.cx,
  (sy - pixels.height / 2) / view.scale + view.cy,
];

function fit() {
  const margin = Math.min(52, pixels.width / 8);
  const across = (pixels.width - 2 * margin) / Math.max(width, 1e-6);
  const down = (pixels.height - 2 * margin) / Math.max(height, 1e-6);
  view.fitted = Math.max(1, Math.min(across, down));
  Object.assign(view, { cx: width / 2, cy: height / 2, scale: view.fitted });
  draw();
}

// Zooms so that the map's point at (sx, sy) stays there.
function zoom(factor, sx = pixels.width / 2, sy = pixels.height / 2) {
  const [mx, my] = toMap(sx, sy);
  view.scale = Math.min(Math.max(view.scale * factor, view.fitted / 2), view.fitted * 400);
  view.cx = mx - (sx - pixels.width / 2) / view.scale;
  view.cy = my - (sy - pixels.height / 2) / view.scale;
  keepInside();
  draw();
}

function pan(dx, dy) {
  view.cx -= dx / view.scale;
  view.cy -= dy / view.scale;
  keepInside();
  draw();
}

// The middle never leaves the map, so that it cannot be lost.
function keepInside() {
  view.cx = Math.min(Math.max(view.cx, 0), width);
  view.cy = Math.min(Math.max(view.cy, 0), height);
}

// Brings a picture into the middle, near enough to see pictures instead of dots.
function goTo(i) {
  const near = view.fitted * Math.max(2, Math.sqrt(count) / 8);
  Object.assign(view, { cx: x[i], cy: y[i], scale: Math.max(view.scale, near) });
  hold(i);
}

// Side of a thumbnail on the map in pixels; below 20 they are dots.
function tileSide() {
  const spacing = view.scale * Math.sqrt(Math.max(width * height, 1e-4) / count);
  return Math.min(0.5 * spacing, Math.max(64, data.size));
}
const asTiles = () => tileSide() >= 20;

// The picture that is drawn at (sx, sy), or -1; dots are caught from a little beside them.
function pictureAt(sx, sy, reach = asTiles() ? tileSide() / 2 : 12) {
  let best = -1, least = Infinity;
  for (let i = 0; i < count; i++) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    const away = Math.hypot(px - sx, py - sy);
    if (Math.max(Math.abs(px - sx), Math.abs(py - sy)) <= reach && away < least) {
      best = i;
      least = away;
    }
  }
  return best;
}
