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

const pen = canvas.getContext("2d");
const sheets = data.sheets.map((address) => {
  const image = new Image();
  image.addEventListener("load", () => { draw(); showDetails(); });
  image.src = address;
  return image;
});
data.sheets = null;
const colors = {};
let waiting = false;

// Dots are drawn in a shuffled order, so that no class covers the others; gray ones first.
const order = Array.from({ length: count }, (_, i) => i);
for (let i = count - 1, seed = 1; i > 0; i--) {
  seed = (seed * 48271) % 2147483647;
  const j = seed % (i + 1);
  [order[i], order[j]] = [order[j], order[i]];
}
const gray = (i) => labelled && colorOf(i) === "#999999";
order.sort((a, b) => gray(b) - gray(a));

function readColors() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["page", "text", "accent"]) {
    colors[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

function thumbnail(context, i, left, top, side) {
  const each = data.columns * data.columns;
  const sheet = sheets[Math.floor(i / each)], cell = i % each;
  context.fillStyle = "#8a929b";
  context.fillRect(left, top, side, side);
  if (!sheet.complete || !sheet.naturalWidth) return;
  const sx = (cell % data.columns) * data.size, sy = Math.floor(cell / data.columns) * data.size;
  context.drawImage(sheet, sx, sy, data.size, data.size, left, top, side, side);
}

// A canvas element with one thumbnail, for the panel.
function thumbnailElement(i, side) {
  const made = document.createElement("canvas");
  made.width = made.height = Math.round(side * Math.min(2, devicePixelRatio || 1));
  made.setAttribute("aria-hidden", "true");
  thumbnail(made.getContext("2d"), i, 0, 0, made.width);
  return made;
}

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; paint(); });
}

function paint() {
  const ratio = devicePixelRatio || 1;
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = colors.page;
  pen.fillRect(0, 0, pixels.width, pixels.height);
  if (asTiles()) paintTiles(); else paintDots(ratio);
  if (!asTiles()) paintNames();
  if (focus() >= 0) paintFocus(focus());
}

const dim = (i) => state.emphasis >= 0 && classOf(i) !== state.emphasis;

function paintDots(ratio) {
  const spacing = view.scale * Math.sqrt(Math.max(width * height, 1e-4) / count);
  const radius = Math.min(6, Math.max(1.8, spacing * 0.17));
  const sprites = (labelled ? data.classes.map((each) => each[1]) : [colors.accent])
    .map((color) => dotSprite(color, radius, ratio));
  const side = sprites[0].width / ratio;
  for (const i of order) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    if (px < -side || py < -side || px > pixels.width + side || py > pixels.height + side) continue;
    pen.globalAlpha = dim(i) ? 0.08 : 0.85;
    pen.drawImage(sprites[classOf(i)], px - side / 2, py - side / 2, side, side);
  }
  pen.globalAlpha = 1;
}

const madeDots = new Map();
function dotSprite(color, radius, ratio) {
  const key = `${color} ${radius.toFixed(1)} ${ratio}`;
  if (madeDots.size > 2000) madeDots.clear();
  if (!madeDots.has(key)) {
    const made = document.createElement("canvas");
    made.width = made.height = Math.ceil((2 * radius + 2) * ratio);
    const context = made.getContext("2d");
    context.fillStyle = color;
    context.beginPath();
    context.arc(made.width / 2, made.width / 2, radius * ratio, 0, 2 * Math.PI);
    context.fill();
    madeDots.set(key, made);
  }
  return madeDots.get(key);
}

function paintTiles() {
  const side = tileSide();
  for (const i of order) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    if (px < -side || py < -side || px > pixels.width + side || py > pixels.height + side) continue;
    pen.globalAlpha = dim(i) ? 0.15 : 1;
    thumbnail(pen, i, px - side / 2, py - side / 2, side);
    if (labelled) frame(px, py, side, colorOf(i), Math.min(3, Math.max(1.5, side / 24)));
  }
  pen.globalAlpha = 1;
}

function frame(px, py, side, color, thickness) {
  pen.strokeStyle = color;
  pen.lineWidth = thickness;
  pen.strokeRect(px - side / 2, py - side / 2, side, side);
}

// Class names, the largest classes first; one that would cover another is left out.
function paintNames() {
  pen.font = `600 ${pixels.width < 500 ? 11 : 13}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.lineJoin = "round";
  const taken = [];
  const bySize = data.centers.map((_, number) => number)
    .filter((number) => !hidden.has(number))
    .sort((a, b) => data.classes[b][2] - data.classes[a][2]);
  for (const number of bySize) {
    const [px, py] = toScreen(...data.centers[number]);
    const half = pen.measureText(data.classes[number][0]).width / 2 + 4;
    if (taken.some((o) => Math.abs(o.px - px) < o.half + half && Math.abs(o.py - py) < 18)) continue;
    taken.push({ px, py, half });
    pen.globalAlpha = state.emphasis >= 0 && state.emphasis !== number ? 0.2 : 1;
    outlined(data.classes[number][0], px, py);
  }
  pen.globalAlpha = 1;
}

function outlined(text, px, py) {
  pen.strokeStyle = colors.page;
  pen.lineWidth = 4;
  pen.strokeText(text, px, py);
  pen.fillStyle = colors.text;
  pen.fillText(text, px, py);
}

// The picture in hand, lines to its nearest, and all of them in front.
function paintFocus(i) {
  const [px, py] = toScreen(x[i], y[i]);
  pen.lineWidth = 1.5;
  pen.strokeStyle = colors.text;
  for (const j of data.neighbors[i]) {
    pen.beginPath();
    pen.moveTo(px, py);
    pen.lineTo(...toScreen(x[j], y[j]));
    pen.stroke();
  }
  for (const j of [...data.neighbors[i]].reverse()) paintMember(j, tileSide(), 5);
  if (asTiles()) paintMember(i, tileSide() * 1.25, 0);
  else paintMember(i, 0, 8);
  if (!asTiles()) paintCallout(i, px, py);
}

// One of the pictures in front: a thumbnail with a frame, or a dot with a ring.
function paintMember(i, side, radius) {
  const [px, py] = toScreen(x[i], y[i]), color = colorOf(i) ?? colors.accent;
  if (asTiles()) {
    thumbnail(pen, i, px - side / 2, py - side / 2, side);
    frame(px, py, side + 4, colors.page, 4);
    frame(px, py, side, color, 3);
    return;
  }
  pen.fillStyle = color;
  pen.strokeStyle = colors.text;
  pen.lineWidth = 2;
  pen.beginPath();
  pen.arc(px, py, radius, 0, 2 * Math.PI);
  pen.fill();
  pen.stroke();
}

// The picture itself beside its dot, where it covers the lines to its nearest least.
function paintCallout(i, px, py) {
  const side = Math.min(96, pixels.width / 5), gap = 18;
  const corners = [[1, -1], [1, 1], [-1, -1], [-1, 1]].map(([right, down]) => {
    const left = right > 0 ? px + gap : px - gap - side, top = down > 0 ? py + gap : py - gap - side;
    const outside = left < 4 || top < 4 || left + side > pixels.width - 4 || top + side > pixels.height - 4;
    const covered = data.neighbors[i].filter((j) => {
      const [jx, jy] = toScreen(x[j], y[j]);
      return (jx - px) * right > 0 && (jy - py) * down > 0;
    }).length;
    return { left, top, cost: covered + (outside ? 100 : 0) };
  });
  const { left, top } = corners.reduce((best, each) => (each.cost < best.cost ? each : best));
  thumbnail(pen, i, left, top, side);
  frame(left + side / 2, top + side / 2, side + 4, colors.page, 4);
  frame(left + side / 2, top + side / 2, side, colorOf(i) ?? colors.accent, 3);
}
