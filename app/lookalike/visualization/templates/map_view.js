const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const canvas = element("map");
const count = data.names.length;
const x = data.places.filter((_, i) => i % 2 === 0), y = data.places.filter((_, i) => i % 2);
const largest = (values) => values.reduce((a, b) => Math.max(a, b), 0);
const width = largest(x), height = largest(y); // of the map; the longer one is 1
const between = (low, value, high) => Math.max(low, Math.min(value, high));
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
  view.scale = view.fitted = Math.max(1, Math.min(across, down));
  look(width / 2, height / 2);
}

// Zooms so that the map's point at (sx, sy) stays there.
function zoom(factor, sx = pixels.width / 2, sy = pixels.height / 2) {
  const [mx, my] = toMap(sx, sy);
  view.scale = between(view.fitted / 2, view.scale * factor, view.fitted * 400);
  look(mx - (sx - pixels.width / 2) / view.scale, my - (sy - pixels.height / 2) / view.scale);
}

const pan = (dx, dy) => look(view.cx - dx / view.scale, view.cy - dy / view.scale);

// Brings a point of the map into the middle, which never leaves the map: it cannot be lost.
function look(cx, cy) {
  Object.assign(view, { cx: between(0, cx, width), cy: between(0, cy, height) });
  draw();
}

// Brings a picture into the middle, near enough to see pictures instead of dots.
function goTo(i) {
  view.scale = Math.max(view.scale, view.fitted * Math.max(2, Math.sqrt(count) / 8));
  look(x[i], y[i]);
  hold(i);
}

// How far apart pictures are, and how large one is drawn, in pixels; below 20 they are dots.
const spacing = () => view.scale * Math.sqrt(Math.max(width * height, 1e-4) / count);
const tileSide = () => Math.min(0.5 * spacing(), Math.max(64, data.size));
const asTiles = () => tileSide() >= 20;

// The picture that is drawn at (sx, sy), or -1; dots are caught from a little beside them.
function pictureAt(sx, sy, reach = asTiles() ? tileSide() / 2 : 12) {
  let best = -1, least = Infinity;
  for (let i = 0; i < count; i++) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    const away = Math.hypot(px - sx, py - sy);
    const caught = Math.max(Math.abs(px - sx), Math.abs(py - sy)) <= reach;
    if (caught && away < least) [best, least] = [i, away];
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
  const size = Math.round(side * Math.min(2, devicePixelRatio || 1));
  const made = make("canvas", { width: size, height: size, ariaHidden: "true" });
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
  if (asTiles()) {
    paintTiles();
  } else {
    paintDots(ratio);
    paintNames();
  }
  if (focus() >= 0) paintFocus(focus());
}

// Paints each picture that is in sight; fainter where another class has the emphasis.
function paintEach(side, [full, faint], paintOne) {
  for (const i of order) {
    if (!shown(i)) continue;
    const [px, py] = toScreen(x[i], y[i]);
    if (px < -side || py < -side || px > pixels.width + side || py > pixels.height + side) continue;
    pen.globalAlpha = state.emphasis >= 0 && classOf(i) !== state.emphasis ? faint : full;
    paintOne(i, px, py);
  }
  pen.globalAlpha = 1;
}

function paintDots(ratio) {
  const radius = between(1.8, spacing() * 0.17, 6);
  const sprites = (labelled ? data.classes.map((each) => each[1]) : [colors.accent])
    .map((color) => dotSprite(color, radius, ratio));
  const side = sprites[0].width / ratio;
  paintEach(side, [0.85, 0.08], (i, px, py) =>
    pen.drawImage(sprites[classOf(i)], px - side / 2, py - side / 2, side, side));
}

const madeDots = new Map();
function dotSprite(color, radius, ratio) {
  const key = `${color} ${radius.toFixed(1)} ${ratio}`;
  if (madeDots.size > 2000) madeDots.clear();
  if (!madeDots.has(key)) {
    const side = Math.ceil((2 * radius + 2) * ratio);
    const made = make("canvas", { width: side, height: side });
    const context = made.getContext("2d");
    context.fillStyle = color;
    context.beginPath();
    context.arc(side / 2, side / 2, radius * ratio, 0, 2 * Math.PI);
    context.fill();
    madeDots.set(key, made);
  }
  return madeDots.get(key);
}

function paintTiles() {
  const side = tileSide();
  paintEach(side, [1, 0.15], (i, px, py) => {
    thumbnail(pen, i, px - side / 2, py - side / 2, side);
    if (labelled) frame(px, py, side, colorOf(i), between(1.5, side / 24, 3));
  });
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
  Object.assign(pen, { strokeStyle: colors.page, fillStyle: colors.text, lineWidth: 4, lineJoin: "round" });
  const taken = [];
  const bySize = data.centers.map((_, number) => number)
    .filter((number) => !hidden.has(number))
    .sort((a, b) => data.classes[b][2] - data.classes[a][2]);
  for (const number of bySize) {
    const [px, py] = toScreen(...data.centers[number]), name = data.classes[number][0];
    const half = pen.measureText(name).width / 2 + 4;
    if (taken.some((o) => Math.abs(o.px - px) < o.half + half && Math.abs(o.py - py) < 18)) continue;
    taken.push({ px, py, half });
    pen.globalAlpha = state.emphasis >= 0 && state.emphasis !== number ? 0.2 : 1;
    pen.strokeText(name, px, py);
    pen.fillText(name, px, py);
  }
  pen.globalAlpha = 1;
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
  paintMember(i, tileSide() * 1.25, 8);
  if (!asTiles()) paintCallout(i, px, py);
}

function framed(i, px, py, side) {
  thumbnail(pen, i, px - side / 2, py - side / 2, side);
  frame(px, py, side + 4, colors.page, 4);
  frame(px, py, side, colorOf(i) ?? colors.accent, 3);
}

// One of the pictures in front: a thumbnail with a frame, or a dot with a ring.
function paintMember(i, side, radius) {
  const [px, py] = toScreen(x[i], y[i]);
  if (asTiles()) {
    framed(i, px, py, side);
    return;
  }
  Object.assign(pen, { fillStyle: colorOf(i) ?? colors.accent, strokeStyle: colors.text, lineWidth: 2 });
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
  framed(i, left + side / 2, top + side / 2, side);
}
